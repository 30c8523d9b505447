"""Compile the fused step's kernels for CUDA devices that need not be there. Run as a script, without TRITON_INTERPRET.

Prints a line per mode and kind of tensor: these, and how many loads move 8 or 16 bytes at once.
"""

import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from neuroplastic_kernels.plasticity_step.fused import kernel_rule
from neuroplastic_kernels.plasticity_step.fused_kernels import join_kernel, step_kernel
from neuroplastic_kernels.plasticity_step.reference import Hyperparameters
from neuroplastic_kernels.plasticity_step.tables import DEVICE, DTYPES, Kind

POINTERS = {torch.float32: "*fp32", torch.int64: "*i64"}


def described(value: Any) -> Any:
    """The type of an example argument, as Triton's signatures spell it."""
    if isinstance(value, tuple):
        parts = tuple(map(described, value))
        return type(value)(*parts) if hasattr(value, "_fields") else parts
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return {float: "fp32", int: "i32"}.get(type(value), "constexpr")


def constants(value: Any, path: tuple[int, ...]) -> dict[tuple[int, ...], Any]:
    """Position -> value of everything in an example argument that is a constant."""
    if isinstance(value, tuple):
        return {k: v for i, part in enumerate(value) for k, v in constants(part, (*path, i)).items()}
    return {path: getattr(value, "value", value)} if described(value) == "constexpr" else {}


def compile_kernel(kernel: Any, capability: int, compiled_for: dict[str, Any], **arguments: Any) -> Any:
    """The kernel for arguments like these. compiled_for: the values of arguments annotated as constants."""
    signature, fixed = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in compiled_for:
            signature[name], fixed[name] = "constexpr", compiled_for[name]
        else:
            signature[name] = described(arguments[name])
            fixed |= constants(arguments[name], (index,))
    source = ASTSource(kernel, signature=signature, constexprs=fixed)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})


KINDS = {  # and the device's capability
    "float32": (Kind(torch.float32, torch.float32, False, 0, True), 90),
    "bfloat16, trace": (Kind(torch.bfloat16, torch.bfloat16, True, 0, True), 80),
    "8 bits, trace": (Kind(torch.bfloat16, torch.float32, True, 256, True), 90),
    "8 bits in blocks of 16": (Kind(torch.bfloat16, torch.float32, False, 16, True), 80),
}


def step_arguments(**options: Any) -> dict[str, Any]:
    """What both kernels take, with everything that options can ask for."""
    hyper = {"lr": 0.1, "base": "adamw", "betas": (0.9, 0.999), "warmup_steps": 5, "weight_decay": 0.1, **options}
    table, floats = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    rule = Hyperparameters(**hyper, skip_nonfinite=True)
    rule = kernel_rule(rule, torch.device("cpu"), gradient_factor=floats, found_inf=floats)
    return {"fields": table, "gradients": table, "partials": floats, "rule": rule}


def compiled_step(kind: Kind, capability: int, mode: str, **options: Any) -> Any:
    fixed = {"MODE": mode, "STOCHASTIC": mode == "apply" and kind.param == torch.bfloat16}
    fixed |= {"PARAM_DTYPE": DTYPES[kind.param], "GRAD_DTYPE": DTYPES[kind.grad], "TRACES": kind.traces}
    fixed |= {"GROUP": kind.eight_bit, "ALIGNED": kind.aligned, "CHUNK": DEVICE.chunk, "BLOCK": DEVICE.block}
    arguments = step_arguments(**options)
    owners = arguments["fields"]
    return compile_kernel(step_kernel, capability, fixed, owners=owners, start_chunk=3, seed=1, **arguments)


def main() -> None:
    for mode in ("check", "signals", "squares", "apply"):
        for name, (kind, capability) in KINDS.items():
            ptx = compiled_step(kind, capability, mode).asm["ptx"]
            print(mode, name, f"sm_{capability}", len(re.findall(r"ld\.global[.\w]*v[24]", ptx)))
        compile_kernel(join_kernel, 90, {"MODE": mode}, **step_arguments())


if __name__ == "__main__":
    main()
