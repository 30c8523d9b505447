"""The fused `plasticity_step` against the reference: every base, option, dtype, size and layout; its bits; its launches."""

import pytest
import torch
from fused_step import BASES, HALVES, SIZES, Problem, assert_close, assert_same_bits, cut_into, fused_module

from neuroplastic_kernels import plasticity_step

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
