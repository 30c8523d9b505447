"""What the tests of the compiled CPU step share."""

import os
import shutil

import pytest
import torch

from neuroplastic_kernels import NeuronFactor, plasticity_step

needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++").split()[0]), reason="needs a C++ compiler: install g++ or set CXX"
)
BASES = ("gradient", "adamw", "momentum")
BLOCK = 8192  # of the source


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def state_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_identical(got, want):
    for actual, expected in zip(got, want, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


def factors(shape, dim, dtype=torch.float32):
    return NeuronFactor(draw((shape[dim],), dtype, 9).abs(), dim)


class Lists:
    """Tensors that are stepped again and again, their state and workspace between the steps in reach."""

    def __init__(self, shapes, dtype=torch.float32, **options):
        self.params = [draw(shape, dtype) for shape in shapes]
        self.states = [[torch.zeros_like(p, dtype=state_dtype(dtype)) for p in self.params] for _ in range(3)]
        self.steps, self.workspace = [torch.zeros(()) for _ in shapes], {}
        self.options = {"lr": 0.03, "betas": (0.9, 0.97), "base": "adamw", **options}

    def step(self, seed, without=()):
        grads = [None if k in without else draw(p.shape, p.dtype, seed) for k, p in enumerate(self.params)]
        plasticity_step(
            self.params, grads, *self.states, self.steps, compile=True, workspace=self.workspace, **self.options
        )

    def all(self):
        return [self.params, *self.states, self.steps]
