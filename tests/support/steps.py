"""What the tests of the optimizer step share, whatever the form that takes it."""

import collections
import importlib
import os
import shutil

import pytest
import torch

from neuroplastic_kernels.plasticity_step import native
from neuroplastic_kernels.plasticity_step.eight_bit import CODES, scales_shape
from neuroplastic_kernels.plasticity_step.reference import SUMS, NeuronFactor
from neuroplastic_kernels.plasticity_step.storage import state_dtype

PASSES = {
    "reference": importlib.import_module("neuroplastic_kernels.plasticity_step.reference").plasticity_passes,
    "native": native.plasticity_passes,
}
if importlib.util.find_spec("triton"):
    PASSES["fused"] = importlib.import_module("neuroplastic_kernels.plasticity_step.fused").plasticity_passes


def whole_step(passes):
    """A form from its first pass to its last."""
    return lambda *lists, **options: collections.deque(passes(*lists, **options), maxlen=0)


FORMS = {name: whole_step(passes) for name, passes in PASSES.items()}
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++").split()[0]), reason="needs a C++ compiler: install g++ or set CXX"
)

BASES = ("adamw", "momentum", "gradient")
HALVES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((3, 5), (70,), (1,), (0,), (17000,))  # the last takes two chunks, the second cut short
TOLERANCE = {  # of the largest element: sums are added in another order, and half precision may differ by its last digit
    torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10,
}  # fmt: skip


class Problem:
    """Parameters, their state and a stream of gradients, the same for the same arguments.

    trace: state for the activity "trace" and the base "gradient". eight_bit: of tensors of a block or more.
    """

    def __init__(self, device="cpu", sizes=SIZES, dtypes=(torch.float32,), trace=False, eight_bit=False, seed=1):
        self.generator = torch.Generator().manual_seed(seed)
        kinds = [dtypes[index % len(dtypes)] for index in range(len(sizes))]
        self.params = [self.draw(size).to(device, kind) for size, kind in zip(sizes, kinds, strict=True)]
        self.states = [self.new_state(p, trace, eight_bit and p.numel() >= 256) for p in self.params]
        self.workspace = {}

    def draw(self, size):
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def new_state(self, p, trace, eight_bit):
        names = [name for name in CODES if trace or name != "trace"]
        wide, device = state_dtype(p), p.device
        state = {name: torch.zeros_like(p, dtype=CODES[name].dtype if eight_bit else wide) for name in names}
        if eight_bit:
            state["scales"] = torch.zeros(scales_shape(p.shape, len(names)), device=device)
        counters = {name: torch.zeros((), device=device) for name in ("step", "skipped")}
        return state | counters | {"sums": torch.zeros(SUMS, dtype=wide, device=device)}

    def gradients(self):
        return [self.draw(p.shape).to(p.device, p.dtype) for p in self.params]

    def step(self, form, gradients, *, base="adamw", lr=0.01, betas=(0.9, 0.999), **options):
        FORMS[form](
            self.params, gradients, self.states, lr=lr, base=base, betas=betas, workspace=self.workspace, **options
        )

    def run(self, form, steps=3, **options):
        for _ in range(steps):
            self.step(form, self.gradients(), **options)
        return self

    def tensors(self):
        return [*self.params, *(tensor for state in self.states for tensor in state.values())]


def both(where, steps=3, problem=None, **options):
    """The same problem stepped by a form and by the reference. where: (device, form), or a device of the fused form."""
    device, form = (where, "fused") if isinstance(where, str) else where
    return [Problem(device, **problem or {}).run(each, steps, **options) for each in (form, "reference")]


def assert_close(actual, expected, tolerance=TOLERANCE):
    for got, want in zip(actual.tensors(), expected.tensors(), strict=True):
        assert got.dtype == want.dtype
        scale = want.abs().max().item() if want.numel() else 1.0
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance[want.dtype] * scale, equal_nan=True)


def assert_same_bits(actual, expected):
    for got, want in zip(actual.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def factors_of(size, dim, device="cpu", seed=9):
    """NeuronFactor of so many neurons."""
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2
    return NeuronFactor(values.to(device), dim)


def cut_into(monkeypatch, block, chunk):
    """Other blocks and chunks for the fused kernels."""
    tables = importlib.import_module("neuroplastic_kernels.plasticity_step.tables")
    shape = tables.Geometry(block, chunk, warps=4)
    for module in (importlib.import_module("neuroplastic_kernels.plasticity_step.fused"), tables):
        monkeypatch.setattr(module, "geometry", lambda: shape)
