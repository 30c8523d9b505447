"""The sums of the trace that a fused step leaves for the next one: the same bits as reading it, and never out of date."""

import importlib

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import plasticity_step

pytest.importorskip("triton")
fused_module = importlib.import_module("neuroplastic_kernels.plasticity_step.fused")
Geometry = importlib.import_module("neuroplastic_kernels.plasticity_step.geometry").Geometry

SIZES = ((1,), (0,), (13, 61), (1100,))


@pytest.fixture
def reads(monkeypatch):
    """Whether each step so far has read the traces."""
    flags, launch = [], fused_module.launch

    def spied(kernel, plan, rule, types, *arguments):
        flags.extend(arguments if kernel is fused_module.signals_kernel else ())
        launch(kernel, plan, rule, types, *arguments)

    monkeypatch.setattr(fused_module, "launch", spied)
    return flags


class Run:
    """A list of tensors and their steps; `reading` has every step read the traces."""

    def __init__(self, device, reading, sizes=SIZES, eight_bit=False):
        self.reading, self.workspace = reading, {}
        self.generator = torch.Generator().manual_seed(3)
        self.params = [torch.randn(size, generator=self.generator).to(device) for size in sizes]
        dtypes = (torch.uint8, torch.int8, torch.uint8) if eight_bit else (torch.float32,) * 3
        self.state = [[torch.zeros_like(p, dtype=dtype) for p in self.params] for dtype in dtypes]
        self.steps = [torch.zeros((), device=device) for _ in self.params]
        self.scales = [torch.zeros(3, -(-p.numel() // 256), device=device) for p in self.params] if eight_bit else None

    def step(self, absent=(), **options):
        if self.reading and "prepared" in self.workspace:
            for plan in self.workspace["prepared"].plans.values():
                plan.counts.forget()
        draw = lambda p: torch.randn(p.shape, generator=self.generator).to(p.device)  # noqa: E731
        grads = [None if index in absent else draw(p) for index, p in enumerate(self.params)]
        plasticity_step(
            self.params, grads, *self.state, self.steps, scales=self.scales, backend="fused", lr=0.01, base="adamw",
            betas=(0.9, 0.999), workspace=self.workspace, **options,
        )  # fmt: skip

    def tensors(self):
        return [*self.params, *(tensor for each in self.state for tensor in each), *self.steps, *(self.scales or ())]


def both(device, **options):
    return Run(device, False, **options), Run(device, True, **options)


def assert_same_bits(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("shape", [(256, 512), (1024, 4096)], ids=str)
def test_kept_sums_have_the_bits_of_read_ones(shape, eight_bit, device, reads, monkeypatch):
    monkeypatch.setattr(fused_module, "geometry", lambda: Geometry(*shape, warps=4))
    kept, read = both(device, eight_bit=eight_bit)
    for _ in range(3):
        kept.step()
        read.step()
        assert_same_bits(kept, read)
    assert reads == [True, True, False, True, False, True]


def test_scales_that_something_else_wrote_are_read_again(device, reads):
    kept, read = both(device, eight_bit=True)
    for run in (kept, read):
        run.step()
        run.step()
        run.scales[3][0, 1:4].mul_(3)
        run.step()
    assert reads[:3] == [True, False, True]
    assert_same_bits(kept, read)


def test_a_trace_that_something_else_wrote_is_read_again(device, reads):
    kept, read = both(device)
    for run in (kept, read):
        run.step()
        run.step()
        run.state[0][3][7:900].mul_(3)
        run.step()
    assert reads[:3] == [True, False, True]
    assert_same_bits(kept, read)


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("skipped", [0, 1])
def test_steps_left_out_for_an_overflow(skipped, eight_bit, device):
    kept, read = both(device, eight_bit=eight_bit)
    for number in range(3):
        overflow = torch.tensor(float(number == skipped), device=device)
        for run in (kept, read):
            run.step(found_inf=overflow)
    assert kept.steps[0] == 2
    assert_same_bits(kept, read)


@pytest.mark.parametrize("which", ["trace", "scales"])
def test_another_tensor_in_the_same_place_is_read(which, device, reads):
    """With the same count of writes, as memory that is used again may have."""
    kept, read = both(device, eight_bit=which == "scales")
    for run in (kept, read):
        run.step()
        held = run.state[0] if which == "trace" else run.scales
        other = held[2].data.view(held[2].shape)
        assert (other.data_ptr(), other._version) == (held[2].data_ptr(), 0)
        while other._version < held[2]._version:
            other.mul_(3)
        held[2] = other
        run.step()
    assert reads == [True, True, True, True]
    assert_same_bits(kept, read)


ABSENCES = [((3,), (), ()), ((), (2, 3), ()), ((0, 1, 2, 3), (0,), ()), ((2,), (3,), (2,))]


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("absences", ABSENCES, ids=str)
def test_parameters_without_a_gradient_keep_their_sums(absences, eight_bit, device, reads):
    kept, read = both(device, eight_bit=eight_bit)
    for absent in absences:
        kept.step(absent)
        read.step(absent)
    assert reads[::2] == [True, False, False]
    assert_same_bits(kept, read)


@pytest.mark.parametrize("first", [{"signals": "gradient"}, {"strength": 0.0}], ids=str)
@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_step_that_does_not_use_the_trace_leaves_its_sums(first, eight_bit, device):
    kept, read = both(device, eight_bit=eight_bit)
    for run in (kept, read):
        run.step(**first, absent=(2,))
        run.step()
        run.step()
    assert_same_bits(kept, read)


def test_new_tables_read(device, reads):
    run = Run(device, False)
    run.step()
    run.step()
    run.state[0] = [trace.clone() for trace in run.state[0]]
    run.step()
    run.workspace = {}
    run.step()
    assert reads == [True, False, True, True]


def test_a_captured_step_reads_and_so_does_every_step_after_it(device, reads, monkeypatch):
    """Replays write the trace uncounted."""
    run = Run(device, False)
    run.step()
    run.step()
    with monkeypatch.context() as context:
        context.setattr(fused_module, "is_captured", lambda tensor: True)
        run.step()
    run.step()
    run.step()
    assert reads == [True, False, True, True, True]


def trained(device, steps):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(40, 50, device=device)), torch.nn.Parameter(torch.randn(7, device=device))]
    optimizer = NeuroPlastic(params, lr=0.01, backend="fused")
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return params, optimizer


def test_a_loaded_state_is_read(device, reads):
    _, optimizer = trained(device, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    optimizer.step()
    assert reads == [True, False, True, False]


def test_a_resized_parameter_is_read(device, reads):
    params, optimizer = trained(device, 2)
    param = params[0]
    param.data = param.data[:30].clone()
    param.grad = torch.randn_like(param)
    state = optimizer.state[param]
    state.update({name: state[name][:30].clone() for name in ("trace", "exp_avg", "exp_avg_sq")})
    optimizer.step()
    assert reads == [True, False, True]


def test_a_step_counts_its_writes_where_it_writes(device):
    (large, small), optimizer = trained(device, 1)
    small.grad = None
    loss = (large * large).sum() + (small * small).sum()
    traces = [optimizer.state[p]["trace"] for p in (large, small)]
    before = [large._version, small._version, traces[0]._version]
    optimizer.step()
    assert [large._version, small._version, traces[0]._version] == [before[0] + 1, before[1], before[2] + 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_made_in_inference_mode_is_read_in_every_step(device, reads):
    params = [torch.nn.Parameter(torch.ones(5, device=device))]
    params[0].grad = torch.ones_like(params[0])
    optimizer = NeuroPlastic(params, backend="fused", max_grad_norm=1.0)
    with torch.inference_mode():
        optimizer.step()
    moved = params[0].grad.clone()
    params[0].grad = moved  # which the tables made before are told
    optimizer.step()
    assert reads == [True, True]
