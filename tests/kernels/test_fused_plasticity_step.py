"""The fused `plasticity_step` against the reference: every base, option, dtype, size and layout; its bits; its launches."""

import importlib
from itertools import chain

import pytest
import torch

from neuroplastic_kernels import NeuronFactor, plasticity_step
from neuroplastic_kernels.reference.eight_bit import CODES, blocks, dequantise

pytest.importorskip("triton")
Geometry = importlib.import_module("neuroplastic_kernels.fused.geometry").Geometry
fused_module = importlib.import_module("neuroplastic_kernels.fused.plasticity_step")
squares_module = importlib.import_module("neuroplastic_kernels.fused.gradient_squares")

BASES = ("gradient", "adamw", "momentum")
SIZES = ((3, 5), (70,), (1,), (0,), (17000,))  # the last takes two chunks, the second cut short
TOLERANCE = {  # of the largest element: sums are added in another order, and half precision may differ by its last digit
    torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10,
}  # fmt: skip
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
            self.params, gradients, *self.state, self.steps, scales=self.scales, backend=backend, lr=lr, base=base,
            betas=betas, workspace=self.workspace, **options,
        )  # fmt: skip

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


OPTIONS = {
    "default": {},
    "warm-up": {"warmup_steps": 2, "plasticity_scale": 1.5},
    "gradient signal": {"signals": "gradient"},
    "half strength": {
        "strength": 0.5,
        "signal_weights": (0.1, 0.2, 0.7),
        "alpha_range": (0.5, 1.2),
        "trace_decay": 0.0,
    },
    "no plasticity": {"strength": 0.0},
    "coupled decay": {"weight_decay": 0.1},
    "decoupled decay, ascent": {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "no homeostasis": {"max_update_norm": None, "homeostatic_rate": 0.0, "betas": (0.0, 0.0)},
    "other homeostasis": {"max_update_norm": 3.0, "target_rms": 5.0, "homeostatic_rate": 0.05},
    "clipping, coupled decay": {"max_grad_norm": 2.0, "weight_decay": 0.1, "maximize": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("base", BASES)
def test_every_base_and_option(base, options, device):
    fused, reference = (Problem(device).run(backend, base=base, **options) for backend in ("fused", "reference"))
    assert_close(fused, reference)


@pytest.mark.parametrize("base", BASES)
def test_mixed_dtypes_in_one_list(base, device):
    options = {"base": base, "weight_decay": 0.1, "max_grad_norm": 1.0}
    fused, reference = (Problem(device, dtypes=HALVES).run(b, **options) for b in ("fused", "reference"))
    assert_close(fused, reference)


def test_bfloat16_parameters_are_rounded_to_the_nearest(device):
    """From the same float32 value: the difference is never more than half a digit."""
    half, full = (Problem(device, [(17000,)]) for _ in range(2))
    half.params[0] = half.params[0].to(torch.bfloat16)
    full.params[0] = half.params[0].float()
    gradients = [g.to(torch.bfloat16) for g in half.gradients()]
    half.step("fused", gradients)
    full.step("fused", [g.float() for g in gradients])
    assert torch.equal(half.params[0], full.params[0].to(torch.bfloat16))
    ties = Problem(device, [(2,)], [torch.bfloat16])
    ties.params[0].copy_(torch.tensor([1.0, 1.0 + 2.0**-7]))
    plain = {"base": "gradient", "strength": 0.0, "max_update_norm": None, "homeostatic_rate": 0.0, "lr": 1.0}
    ties.step("fused", [torch.full_like(ties.params[0], -(2.0**-8))], **plain)
    assert ties.params[0].tolist() == [1.0, 1.0 + 2.0**-6]


@pytest.mark.parametrize("base", BASES)
def test_blocks_and_chunks_only_order_the_sums(base, device, monkeypatch):
    expected = Problem(device, [(1300,), (4096,)]).run("reference", base=base, max_grad_norm=1.0)
    cut_into(monkeypatch, 256, 1024)
    assert_close(Problem(device, [(1300,), (4096,)]).run("fused", base=base, max_grad_norm=1.0), expected)


def test_the_same_state_gives_the_same_bits(device):
    first, second = (Problem(device, eight_bit=True).run("fused", max_grad_norm=1.0) for _ in range(2))
    assert_same_bits(first, second)


def test_no_bit_depends_on_other_tensors_or_on_where_tables_were_made(device):
    together = Problem(device).run("fused", steps=2)
    anew = Problem(device)
    for _ in range(2):
        anew.workspace = {}
        gradients = anew.gradients()
        for index in range(len(SIZES)):
            lists = ([each[index]] for each in (anew.params, gradients, *anew.state, anew.steps))
            plasticity_step(*lists, backend="fused", lr=0.01, base="adamw", betas=(0.9, 0.999))
    assert_same_bits(together, anew)


def test_unaligned_tensors(device):
    shifted = lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)  # noqa: E731
    expected, problem = Problem(device), Problem(device)
    problem.params = [shifted(p) for p in problem.params]
    problem.state[1] = [shifted(m) for m in problem.state[1]]
    for _ in range(2):
        expected.step("reference", expected.gradients())
        problem.step("fused", [shifted(g) for g in problem.gradients()])
    assert_close(problem, expected)


def test_tensors_the_kernels_do_not_take_go_to_the_reference(device):
    problems = [Problem(device, [(30, 40), (5, 7), (64,)]) for _ in range(2)]
    for problem, backend in zip(problems, ("fused", "reference"), strict=True):
        problem.params[1] = problem.params[1].t()
        problem.state = [[moment[0], moment[1].t(), moment[2].double()] for moment in problem.state]
        problem.params[2] = problem.params[2].double()
        problem.run(backend, steps=2)
        turned = problem.gradients()
        turned[0] = turned[0].t().contiguous().t()
        problem.step(backend, turned)
        problem.run(backend, steps=1)
    assert_close(*problems)
    for problem, backend in zip(problems, ("fused", "reference"), strict=True):
        problem.run(backend, steps=1, max_grad_norm=0.5)
    of_the_norm = {**TOLERANCE, torch.float64: TOLERANCE[torch.float32]}  # which is of float32 gradients, too
    assert_close(*problems, of_the_norm)


def test_random_numbers_belong_to_a_tensor_s_place_in_the_list(device):
    """Whichever form a tensor and those before it take."""
    tensors = {}
    for turned in (False, True):
        problem = Problem(device, [(70, 80), (50, 60), (40, 30)], [torch.bfloat16])
        if turned:
            problem.params[1] = problem.params[1].t().contiguous().t()
        problem.run("fused", steps=1, base="gradient", strength=0.0, stochastic_rounding=True)
        tensors[turned] = problem.params
    for got, want in zip(tensors[True], tensors[False], strict=True):
        assert (got == want).float().mean() > 0.999


def test_gradients_may_move_vanish_and_come_back(device):
    fused, reference = Problem(device), Problem(device)
    for absent in ((), (0, 4), (1, 2, 3), (0, 1, 2, 3, 4), ()):
        for problem, backend in ((fused, "fused"), (reference, "reference")):
            gradients = [None if i in absent else g for i, g in enumerate(problem.gradients())]
            problem.step(backend, gradients, max_grad_norm=1.0)
        assert_close(fused, reference)
    assert fused.steps[0] == 3


def test_replaced_tensors_are_seen(device):
    fused, reference = Problem(device), Problem(device)
    for problem, backend in ((fused, "fused"), (reference, "reference")):
        problem.run(backend, steps=1)
        problem.params[4] = problem.params[4][:300]
        problem.state = [[*moment[:4], moment[4][:300]] for moment in problem.state]  # shorter, at the same address
        problem.run(backend, steps=1)
        problem.steps[0] = torch.zeros((), device=device)
        problem.run(backend, steps=1)
    assert_close(fused, reference)


@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_memory_taken_for_another_kind_of_parameter_is_seen(change, device):
    """As a small model finds it that went to the CPU, was converted there and came back."""
    fused, reference = (Problem(device, [(4, 6, 5)]) for _ in range(2))
    for problem, backend in ((fused, "fused"), (reference, "reference")):
        gradient, factors = problem.gradients()[0], NeuronFactor(torch.linspace(0, 2, 6, device=device), 1)
        problem.step(backend, [gradient], neuron_factors=[factors])
        if change == "dtype":
            halves = [
                whole.flatten().view(torch.bfloat16)[:120].view(4, 6, 5) for whole in (problem.params[0], gradient)
            ]
            param, gradient = (half.copy_(torch.arange(1, 121).view(4, 6, 5)) for half in halves)
        else:
            param, gradient = problem.params[0].view(5, 6, 4), gradient.view(5, 6, 4)
            problem.state = [[moment[0].view(5, 6, 4)] for moment in problem.state]
        problem.params = [param]
        problem.step(backend, [gradient], neuron_factors=[factors])
    assert_close(fused, reference)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("base", BASES)
def test_bad_gradients_behave_as_in_the_reference(base, strength, bad, device):
    fused, reference = Problem(device, [(300,), (20,)]), Problem(device, [(300,), (20,)])
    for problem, backend in ((fused, "fused"), (reference, "reference")):
        gradients = problem.gradients()
        gradients[0][3] = bad
        problem.step(backend, gradients, base=base, strength=strength)
        problem.run(backend, steps=1, base=base, strength=strength)
    for got, want in zip(fused.tensors(), reference.tensors(), strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())
        torch.testing.assert_close(got[got.isfinite()], want[want.isfinite()], rtol=1e-5, atol=1e-6)
    assert not fused.params[0][3].isfinite()


@pytest.mark.parametrize("max_grad_norm", [None, 1e4])  # the second is out of reach of the gradients as they are
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_the_loss_scale_is_taken_off(backend, max_grad_norm, device):
    scaled, plain = Problem(device), Problem(device)
    scale, options = torch.tensor([1024.0], device=device), {"base": "gradient", "max_grad_norm": max_grad_norm}
    for _ in range(2):
        scaled.step(backend, [g * 1024 for g in scaled.gradients()], grad_scale=scale, **options)
        plain.step(backend, plain.gradients(), **options)
    assert_close(scaled, plain)


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_an_overflow_changes_nothing(backend, eight_bit, device):
    stepped, skipped = (Problem(device, eight_bit=eight_bit).run(backend, steps=1) for _ in range(2))
    gradients = [torch.full_like(p, torch.inf) for p in skipped.params]
    skipped.step(backend, gradients, found_inf=torch.ones((), device=device), max_grad_norm=1.0)
    assert_same_bits(stepped, skipped)
    skipped.step(backend, skipped.gradients(), found_inf=torch.zeros((), device=device))
    assert skipped.steps[0] == 2


def test_the_learning_rate_may_be_a_tensor(device):
    rate = torch.tensor(0.5, device=device)
    by_tensor, by_number = Problem(device), Problem(device)
    by_tensor.run("fused", 1, lr=rate, weight_decay=0.1, decoupled_weight_decay=True)
    by_number.run("fused", 1, lr=0.5, weight_decay=0.1, decoupled_weight_decay=True)
    assert_same_bits(by_tensor, by_number)


@pytest.mark.parametrize("base", BASES)
def test_stochastic_rounding_draws_the_reference_s_numbers(base, device):
    sizes, dtypes = [(17000,), (33,)], (torch.bfloat16,)
    options = {"base": base, "stochastic_rounding": True, "seed": 2**40 + 5}
    fused, reference = (Problem(device, sizes, dtypes).run(b, steps=1, **options) for b in ("fused", "reference"))
    same = torch.cat([(a == b).flatten() for a, b in zip(fused.params, reference.params, strict=True)])
    assert same.float().mean() > 0.999  # the last digit of float32 decides about the others
    other = Problem(device, sizes, dtypes).run("fused", steps=1, **{**options, "seed": 6})
    assert (fused.params[0] != other.params[0]).float().mean() > 0.01


@pytest.mark.parametrize("shape", [None, (256, 1024), (1024, 4096)])
@pytest.mark.parametrize("base", BASES)
def test_eight_bit_state(base, shape, device, monkeypatch):
    """Codes differ from the reference's where the last digit of float32 decides, and then by one."""
    if shape:
        cut_into(monkeypatch, *shape)
    sizes, options = [(5, 7), (5100,)], {"base": base, "max_grad_norm": 1.0, "weight_decay": 0.01}
    fused, reference = (Problem(device, sizes, eight_bit=True) for _ in range(2))
    for problem, backend in ((fused, "fused"), (reference, "reference")):
        problem.run(backend, steps=1, **options)
        gradients = problem.gradients()
        gradients[1][300] = 1e9  # beside it the other v of its block are next to nothing
        problem.step(backend, gradients, **{**options, "max_grad_norm": None})
    for got, want in zip(fused.params, reference.params, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    for got, want in zip(chain(*fused.state), chain(*reference.state), strict=True):
        if not want.is_floating_point():
            difference = (got.int() - want.int()).abs()
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 2e-3
    torch.testing.assert_close(fused.scales[1], reference.scales[1], rtol=1e-2, atol=0)
    assert dequantise([moment[1] for moment in fused.state], fused.scales[1])[2].min() > 0


@pytest.mark.parametrize("base", BASES)
def test_the_mean_of_an_eight_bit_trace(base, device):
    """Steps that follow the trace alone: a code that differs by one moves an element by a hundredth of its step."""
    options = {"base": base, "signal_weights": (1.0, 0.0, 0.0), "alpha_range": (0.0, 3.0), "steps": 4}
    options["lr"] = 10.0 if base == "gradient" else 0.01  # far above float32's last digit
    fused, reference = (Problem(device, [(9000,)], eight_bit=True).run(b, **options) for b in ("fused", "reference"))
    start = Problem(device, [(9000,)]).params[0]
    difference, moved = fused.params[0] - reference.params[0], reference.params[0] - start
    assert difference.abs().max() < 0.02 * moved.abs().max()
    assert difference.abs().mean() < 3e-5 * moved.abs().mean()


@pytest.mark.parametrize("wrong", [torch.ones(16), torch.ones(4097)], ids=["shorter", "longer"])
def test_a_later_gradient_of_another_size_is_refused(wrong, device):
    problem = Problem(device, [(7,), (4096,)]).run("fused", steps=1)
    before = [p.clone() for p in problem.params]
    with pytest.raises(RuntimeError, match=r"parameter 1 has shape \(4096,\) but its gradient or state another"):
        problem.step("fused", [torch.ones(7, device=device), wrong.to(device)])
    assert all(torch.equal(p, was) for p, was in zip(problem.params, before, strict=True))


def test_a_gradient_that_is_not_contiguous_sends_its_tensor_away_for_that_step_alone(device):
    fused, reference = (Problem(device, [(7,), (60, 70)]) for _ in range(2))
    for number in range(3):
        gradients = fused.gradients()
        if number == 1:
            gradients[1] = gradients[1].t().contiguous().t()
        fused.step("fused", gradients)
        assert fused.workspace["prepared"].others == ([1] if number == 1 else [])
        reference.step("reference", gradients)
    assert_close(fused, reference)


def test_many_tensors_take_as_many_launches_as_one(device, monkeypatch):
    launches, launch = [], fused_module.launch
    monkeypatch.setattr(fused_module, "launch", lambda kernel, plan, *a, **k: launches.append(len(plan.buckets)) or launch(
        kernel, plan, *a, **k))  # fmt: skip
    sizes = [(1 + index % 7,) for index in range(500)]
    options = {"base": "gradient", "strength": 0.0}
    fused = Problem(device, sizes).run("fused", steps=1, **options)
    assert launches == [1, 1, 1]
    assert_close(fused, Problem(device, sizes).run("reference", steps=1, **options))


def test_an_empty_list_is_no_error(device):
    plasticity_step([], [], [], [], [], [], backend="fused", lr=0.1, base="adamw", betas=(0.9, 0.999))


def capture(problem, gradients, **options):
    """A CUDA graph of one step of `problem`, after one step outside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        problem.step("fused", gradients, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        problem.step("fused", gradients, **options)
    return graph


@pytest.mark.gpu
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_captured_step_is_the_step(base, eight_bit):
    rate = torch.tensor(0.01, device="cuda")
    options = {"base": base, "lr": rate, "warmup_steps": 3, "max_grad_norm": 1.0, "stochastic_rounding": True}
    captured, plain = (Problem("cuda", dtypes=(torch.float32, torch.bfloat16), eight_bit=eight_bit) for _ in range(2))
    static = captured.gradients()
    plain.step("fused", plain.gradients(), **options)
    graph = capture(captured, static, **options)
    for number in range(3):
        rate.fill_(0.01 / (number + 1))
        for held, new in zip(static, captured.gradients(), strict=True):
            held.copy_(new)
        graph.replay()
        plain.step("fused", plain.gradients(), **options)
        captured.run("fused", steps=1, **options)  # a step outside, with other gradients, disturbs nothing
        plain.run("fused", steps=1, **options)
    assert_same_bits(captured, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("eight_bit", [False, True])
def test_nothing_waits_for_the_device_and_nothing_is_allocated(eight_bit):
    problem = Problem("cuda", dtypes=HALVES, eight_bit=eight_bit)
    options = {
        "max_grad_norm": 1.0,
        "grad_scale": torch.ones((), device="cuda"),
        "found_inf": torch.zeros((), device="cuda"),
    }
    gradients = problem.gradients()
    problem.step("fused", gradients, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        problem.step("fused", gradients, **options)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        problem.step("fused", [g.clone() for g in gradients], **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_reference_with_counters_on_the_device_can_be_captured():
    captured, plain = Problem("cuda"), Problem("cuda")
    plain.steps = [step.cpu() for step in plain.steps]
    options = {"warmup_steps": 3, "weight_decay": 0.1}
    gradients = captured.gradients()
    captured.step("reference", gradients, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step("reference", gradients, **options)
    graph.replay()
    for _ in range(2):
        plain.step("reference", gradients, **options)
    plain.steps = [step.cuda() for step in plain.steps]
    assert_close(captured, plain)
