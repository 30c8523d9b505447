"""Optimizer steps whose launches are only noted. Run as a script, without TRITON_INTERPRET; it needs no device.

Takes steps with changing options, once as they are and once with each launch looked up by Triton, and prints a line per step:
its launches, how many of them were looked up, and whether both ways launched the same.
"""

import importlib
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from neuroplastic_kernels.plasticity_step import geometry

MODULES = [
    importlib.import_module(f"neuroplastic_kernels.plasticity_step.{n}") for n in ("fused", "fused_gradient_squares")
]
KERNELS = ("signals_kernel", "update_kernel", "apply_kernel", "squares_kernel")
SIZES = ((40, 50), (7,), (3, 11))
OPTIONS = {"lr": 0.1, "base": "adamw", "betas": (0.9, 0.999)}
launched: list[Any] = []


class Launcher:
    """Stands for a loaded kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.kernel = source.hash()

    def __call__(self, *arguments: Any) -> None:
        grid, passed = arguments[:3], arguments[9:]  # between them the stream, the function and hooks
        launched.append((self.kernel, grid, noted(passed)))


class Utilities:
    def load_binary(self, *_: Any) -> tuple[Any, ...]:
        return object(), 1, 32, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 2**17}


class Driver:
    utils, launcher_cls = Utilities(), Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def noted(value: Any) -> Any:
    """An argument: of a tensor, what can be told without its address."""
    if isinstance(value, tuple):
        return tuple(map(noted, value))
    return (tuple(value.shape), value.dtype, value.data_ptr() % 16) if isinstance(value, torch.Tensor) else value


def changes() -> list[dict[str, Any]]:
    """What is different in each step."""
    aligned, beside = torch.zeros(2)
    return [
        {},
        {},
        {"lr": 0.05},
        {"gradients": [torch.ones(size) for size in SIZES]},
        {"found_inf": aligned},
        {"found_inf": beside},
        {"found_inf": aligned.clone()},
        {"seed": 7},
        {"seed": 2**40},
        {"seed": 2**40 + 1},
        {"found_inf": beside, "max_grad_norm": 1.0},
        {"found_inf": beside, "max_grad_norm": 2.0},
        {"weight_decay": 0.1},
        {"weight_decay": 0.2},
        {"signals": "gradient"},
        {},
    ]


def run() -> list[tuple[list[Any], int]]:
    """What each step launches, and how many launches were looked up."""
    lists = [[torch.zeros(size) for size in SIZES] for _ in range(4)] + [[torch.zeros(()) for _ in SIZES]]
    params, *state = lists
    own, workspace, steps = [torch.ones(size) for size in SIZES], {}, []
    lookups: list[str] = []
    for module in MODULES:
        for kernel in filter(None, (getattr(module, name, None) for name in KERNELS)):
            kernel.pre_run_hooks = [lambda *_, **__: lookups.append("")]
    for change in changes():
        launched.clear()
        lookups.clear()
        gradients = change.pop("gradients", own)
        MODULES[0].plasticity_step(params, gradients, *state, workspace=workspace, **OPTIONS | change)
        steps.append((list(launched), len(lookups)))
    return steps


def main() -> None:
    driver.set_active(Driver())
    for module in MODULES:
        module.is_readable = lambda tensor: tensor.dtype in geometry.DTYPES and tensor.is_contiguous()
    own = run()
    for module in MODULES:
        module.relaunch = lambda held, key, kernel, programs, *arguments, **options: kernel[(programs,)](
            *arguments, **options
        )
    for (step, lookups), (plain, all_lookups) in zip(own, run(), strict=True):
        assert all_lookups == len(plain)
        print(len(step), lookups, step == plain)


if __name__ == "__main__":
    main()
