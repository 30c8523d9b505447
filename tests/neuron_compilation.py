"""Compile the kernels of the neurons for CUDA devices that need not be there. Run as a script, without TRITON_INTERPRET.

Prints a line for each.
"""

import torch
from cuda_compilation import POINTERS, compile_kernel

from neuroplastic_kernels.fused.neuron_kernels import reinit_kernel
from neuroplastic_kernels.fused.neuron_models import statistics_kernel
from neuroplastic_kernels.fused.synaptic_scale import scale_kernel

INT64, INT8, FLOAT = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int8), torch.zeros(1)
POINTERS[torch.int8] = "*i8"
# For each rule, the device's capability, and what else the kernel takes.
REBIRTHS = {
    "normal": (90, None, None),
    "layer": (90, None, FLOAT),
    "split": (80, INT64, None),
}


def main() -> None:
    for init, (capability, donors, parts) in REBIRTHS.items():
        compile_kernel(
            reinit_kernel, capability, {"INIT": init, "PARTS": 128}, items=INT64, first_item=3, masks=INT8,
            survivors=INT8, mean_outputs=FLOAT, donors=donors, parts=parts, std=0.5, seed=7, event=9,
        )  # fmt: skip
        print("reinit", init)
    compile_kernel(statistics_kernel, 80, {}, items=INT64, first_item=3, masks=INT8, survivors=INT8, parts=FLOAT)
    print("statistics")
    compile_kernel(
        scale_kernel, 90, {"RELATIVE": True}, table=INT64, heads=INT64, scale=FLOAT, average=FLOAT, weight=FLOAT,
        active=INT8, rate=0.1, target=0.5, smallest=0.1, largest=2.0,
    )  # fmt: skip
    print("scale")


if __name__ == "__main__":
    main()
