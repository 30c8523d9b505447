"""What the tests of the fused step share."""

import importlib
from itertools import chain

import pytest
import torch

from neuroplastic_kernels import plasticity_step
from neuroplastic_kernels.plasticity_step.eight_bit import CODES, blocks

pytest.importorskip("triton")
Geometry = importlib.import_module("neuroplastic_kernels.plasticity_step.geometry").Geometry
fused_module = importlib.import_module("neuroplastic_kernels.plasticity_step.fused")
squares_module = importlib.import_module("neuroplastic_kernels.plasticity_step.fused_gradient_squares")

BASES = ("gradient", "adamw", "momentum")
SIZES = ((3, 5), (70,), (1,), (0,), (17000,))  # the last takes two chunks, the second cut short
TOLERANCE = {  # of the largest element: sums are added in another order, and half precision may differ by its last digit
    torch.float64: 1e-12,
    torch.float32: 5e-6,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}
HALVES = (torch.float32, torch.bfloat16, torch.float16)


class Problem:
    """Parameters, their state and a stream of gradients, the same for the same arguments."""

    def __init__(self, device, sizes=SIZES, dtypes=(torch.float32,), eight_bit=False):
        self.generator = torch.Generator().manual_seed(1)
        draw = lambda size: torch.randn(size, generator=self.generator)  # noqa: E731
        kinds = [dtypes[index % len(dtypes)] for index in range(len(sizes))]
        self.params = [draw(size).to(device, kind) for size, kind in zip(sizes, kinds, strict=True)]
        self.state = [[torch.zeros_like(p, dtype=torch.float32) for p in self.params] for _ in range(3)]
        self.scales = [None] * len(sizes)
        for index, p in enumerate(self.params):
            if eight_bit and p.numel() >= 256:
                for moment, code in zip(self.state, CODES.values(), strict=True):
                    moment[index] = torch.zeros_like(p, dtype=code.dtype)
                self.scales[index] = torch.zeros(3, blocks(p.numel()), device=device)
        self.steps = [torch.zeros((), device=device) for _ in self.params]
        self.workspace = {}

    def gradients(self):
        return [torch.randn(p.shape, generator=self.generator).to(p.device, p.dtype) for p in self.params]

    def step(self, backend, gradients, *, base="adamw", lr=0.01, betas=(0.9, 0.999), **options):
        plasticity_step(
            self.params,
            gradients,
            *self.state,
            self.steps,
            scales=self.scales,
            backend=backend,
            lr=lr,
            base=base,
            betas=betas,
            workspace=self.workspace,
            **options,
        )

    def run(self, backend, steps=3, **options):
        for _ in range(steps):
            self.step(backend, self.gradients(), **options)
        return self

    def tensors(self):
        return [*self.params, *chain(*self.state), *self.steps, *(s for s in self.scales if s is not None)]


def assert_close(actual, expected, tolerance=TOLERANCE):
    for got, want in zip(actual.tensors(), expected.tensors(), strict=True):
        assert got.dtype == want.dtype
        scale = want.abs().max().item() if want.numel() else 1.0
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance[want.dtype] * scale, equal_nan=True)


def assert_same_bits(actual, expected):
    assert all(torch.equal(got, want) for got, want in zip(actual.tensors(), expected.tensors(), strict=True))


def cut_into(monkeypatch, block, chunk):
    """Other blocks and chunks for the kernels."""
    for module in (fused_module, squares_module):
        monkeypatch.setattr(module, "geometry", lambda: Geometry(block, chunk, warps=4))
