"""Compile the kernels of the neurons for CUDA devices that need not be there. Run as a script, without TRITON_INTERPRET.

Prints a line for each.
"""

import torch
from cuda_compilation import POINTERS, compile_kernel

from neuroplastic_kernels.ffn_activation.fused import BACKWARD_TILE, FORWARD_TILE, SUM_TILE
from neuroplastic_kernels.ffn_activation.kernels import backward_kernel, forward_kernel, sum_kernel
from neuroplastic_kernels.neuron_reinit.kernels import reinit_kernel
from neuroplastic_kernels.neuron_reinit.templates import statistics_kernel
from neuroplastic_kernels.synaptic_scale.fused import scale_kernel

INT64, INT8, FLOAT = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int8), torch.zeros(1)
HALF = torch.zeros(1, dtype=torch.bfloat16)
POINTERS |= {torch.int8: "*i8", torch.bfloat16: "*bf16"}
# For each rule, the device's capability, and what else the kernel takes.
REBIRTHS = {
    "normal": (90, None, None),
    "layer": (90, None, FLOAT),
    "split": (80, INT64, None),
}


def main() -> None:
    for init, (capability, donors, partials) in REBIRTHS.items():
        compile_kernel(
            reinit_kernel,
            capability,
            {"INIT": init, "PARTIALS": 128},
            items=INT64,
            first_item=3,
            masks=INT8,
            survivors=INT8,
            mean_outputs=FLOAT,
            donors=donors,
            partials=partials,
            std=0.5,
            seed=7,
            event=9,
        )
        print("reinit", init)
    compile_kernel(statistics_kernel, 80, {}, items=INT64, first_item=3, masks=INT8, survivors=INT8, partials=FLOAT)
    print("statistics")
    compile_kernel(
        scale_kernel,
        90,
        {"RELATIVE": True},
        table=INT64,
        heads=INT64,
        scale=FLOAT,
        average=FLOAT,
        weight=FLOAT,
        active=INT8,
        rate=0.1,
        target=0.5,
        smallest=0.1,
        largest=2.0,
    )
    print("scale")
    layer = {"h": HALF, "bias": HALF, "seed": INT64, "tokens": 3, "width": 3, "rate": 0.1, "scale": 1.1}
    compile_kernel(forward_kernel, 90, {"ACTIVATION": "gelu", **constants_of(FORWARD_TILE)}, z=HALF, **layer)
    compile_kernel(
        backward_kernel,
        80,
        {"ACTIVATION": "gelu", "OBSERVE": True, **constants_of(BACKWARD_TILE)},
        dy=HALF,
        token_mask=INT8,
        dh=HALF,
        partials=FLOAT,
        rows=7,
        tiles=3,
        **layer,
    )
    compile_kernel(sum_kernel, 90, constants_of(SUM_TILE), partials=FLOAT, sums=FLOAT, splits=3, rows=7, width=3)
    print("feed-forward layer")


def constants_of(tile: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in tile.items() if name != "num_warps"}


if __name__ == "__main__":
    main()
