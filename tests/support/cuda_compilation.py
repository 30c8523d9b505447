"""Compile the fused step's kernels for CUDA devices that need not be there. Run as a script, without TRITON_INTERPRET.

Prints one line per kernel and kind of tensor: its name, the kind, and how many loads move 8 or 16 bytes at once.
"""

import re
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from neuroplastic_kernels.plasticity_step.formulas import Hyperparameters
from neuroplastic_kernels.plasticity_step.fused import kernel_rule
from neuroplastic_kernels.plasticity_step.fused_gradient_squares import squares_kernel
from neuroplastic_kernels.plasticity_step.fused_kernels import apply_kernel, signals_kernel, update_kernel
from neuroplastic_kernels.plasticity_step.geometry import DEVICE

POINTERS = {torch.float32: "*fp32", torch.int64: "*i64"}


def described(value: Any) -> Any:
    """The type of an example argument, as Triton's signatures spell it."""
    if isinstance(value, tuple):
        return type(value)(*map(described, value))
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return {float: "fp32", int: "i32"}.get(type(value), "constexpr")


def constants(value: Any, path: tuple[int, ...]) -> dict[tuple[int, ...], Any]:
    """Position -> value of everything in an example argument that is a constant."""
    if isinstance(value, tuple):
        return {k: v for i, part in enumerate(value) for k, v in constants(part, (*path, i)).items()}
    return {path: getattr(value, "value", value)} if described(value) == "constexpr" else {}


def compile_kernel(kernel: Any, capability: int, compiled_for: dict[str, Any], **arguments: Any) -> str:
    """PTX for arguments like these. compiled_for: the values of arguments annotated as constants."""
    signature, fixed = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in compiled_for:
            signature[name], fixed[name] = "constexpr", compiled_for[name]
        else:
            signature[name] = described(arguments[name])
            fixed |= constants(arguments[name], (index,))
    source = ASTSource(kernel, signature=signature, constexprs=fixed)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm["ptx"]


def main() -> None:
    table, partials = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    hyper = Hyperparameters(lr=torch.zeros(1), base="adamw", betas=(0.9, 0.999), warmup_steps=5, weight_decay=0.1)
    scalars = {name: torch.ones(1) for name in ("grad_scale", "found_inf", "gradient_squares")}
    rule = kernel_rule(hyper, torch.device("cpu"), 1.0, **scalars)
    for eight_bit, dtype, capability in ((False, tl.float32, 90), (True, tl.bfloat16, 80)):
        kind = {"PARAM": dtype, "GRAD": dtype, "EIGHT_BIT": eight_bit, "ALIGNED": True, "STOCHASTIC": True}
        kind |= {"CHUNK": DEVICE.chunk, "BLOCK": DEVICE.block, "READ_TRACES": not eight_bit}
        for kernel in (squares_kernel, signals_kernel, update_kernel, apply_kernel):
            ptx = compile_kernel(
                kernel,
                capability,
                kind,
                fields=table,
                owners=table,
                partials=partials,
                sums=partials,
                chunks=3,
                start_chunk=0,
                rule=rule,
                seed=1,
            )
            print(kernel.__name__, f"sm_{capability}", len(re.findall(r"ld\.global[.\w]*v[24]", ptx)))


if __name__ == "__main__":
    main()
