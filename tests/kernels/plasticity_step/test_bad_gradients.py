"""Every fast step under gradients that jump, overflow or are no numbers, as the reference takes them."""

import pytest
import torch
from steps import BASES, Problem, assert_close, assert_same_bits, both


@pytest.mark.parametrize("scale", [1e6, 1e-6, 1e-20])
@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("base", BASES)
def test_gradients_that_jump(base, statistics, scale, fast):
    problems = [Problem(fast.device, [(300,), (20,)]) for _ in range(2)]
    for problem, form in zip(problems, (fast.form, "reference"), strict=True):
        for factor in (1.0, scale, 1.0):
            problem.step(form, [g * factor for g in problem.gradients()], base=base, statistics=statistics)
    assert_close(*problems)
    assert all(tensor.isfinite().all() for tensor in problems[0].tensors())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("base", BASES)
def test_a_bad_gradient_hits_its_own_element(base, statistics, strength, bad, fast):
    options = {"base": base, "strength": strength, "statistics": statistics}
    problems = [Problem(fast.device, [(300,), (20,)]).run(form, 1, **options) for form in (fast.form, "reference")]
    for problem, form in zip(problems, (fast.form, "reference"), strict=True):
        gradients = problem.gradients()
        gradients[0][3] = bad
        problem.step(form, gradients, **options)
        problem.run(form, 2, **options)
    fused, reference = problems
    for got, want in zip(fused.tensors(), reference.tensors(), strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())
        torch.testing.assert_close(got[got.isfinite()], want[want.isfinite()], rtol=1e-5, atol=1e-6)
    assert not fused.params[0][3].isfinite()
    assert fused.params[1].isfinite().all()
    assert fused.params[0].isfinite().sum() == (0 if base == "gradient" else 299)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{}, {"statistics": "exact"}, {"strength": 0.0}, {"base": "gradient"}], ids=str)
def test_a_tensor_with_a_bad_gradient_is_skipped(options, bad, fast):
    fused, reference = both(fast, 1, {"eight_bit": True}, **options)
    before = {name: tensor.clone() for name, tensor in fused.states[4].items()} | {"p": fused.params[4].clone()}
    for problem, form in ((fused, fast.form), (reference, "reference")):
        gradients = problem.gradients()
        gradients[4][16999] = bad
        problem.step(form, gradients, skip_nonfinite=True, **options)
    after = fused.states[4] | {"p": fused.params[4]}
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["skipped"]
    for problem, form in ((fused, fast.form), (reference, "reference")):
        problem.run(form, 1, skip_nonfinite=True, **options)
        assert [state["step"].item() for state in problem.states] == [3, 3, 3, 3, 2]
        assert [state["skipped"].item() for state in problem.states] == [0, 0, 0, 0, 1]
    for got, want in zip(fused.params, reference.params, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_gradient_that_its_factor_makes_infinite_is_bad(fast):
    problem, factor = Problem(fast.device, [(5,)]), torch.tensor(1e30, device=fast.device)
    problem.step(fast.form, [torch.full((5,), 1e30, device=fast.device)], skip_nonfinite=True, gradient_factor=factor)
    assert problem.states[0]["skipped"] == 1
    assert problem.states[0]["step"] == 0


@pytest.mark.parametrize("options", [{}, {"statistics": "exact"}, {"skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("eight_bit", [False, True])
def test_an_overflow_changes_nothing(eight_bit, options, fast):
    stepped, idle = (Problem(fast.device, eight_bit=eight_bit).run(fast.form, 1, **options) for _ in range(2))
    infinite = [torch.full_like(p, torch.inf) for p in idle.params]
    for found in (torch.ones((), device=fast.device), torch.ones(1, device=fast.device, dtype=torch.float16)):
        idle.step(fast.form, infinite, found_inf=found, **options)
    assert_same_bits(stepped, idle)
    idle.step(fast.form, idle.gradients(), found_inf=torch.zeros((), device=fast.device), **options)
    assert idle.states[0]["step"] == 2


@pytest.mark.parametrize("pause", [2, 4, 7])
def test_steps_without_a_gradient_in_between_lengthen_no_other(pause, fast):
    """Sums of 0 are no history: the step after them is the base's own, not one of the highest alpha."""
    problem, plain = (Problem(fast.device, [(300,)]) for _ in range(2))
    moved = {True: 0.0, False: 0.0}
    for number in range(6 * pause):
        for each, strength in ((problem, 1.0), (plain, 0.0)):
            before = each.params[0].clone()
            gradients = [g * (number % pause == 0) for g in each.gradients()]
            each.step(fast.form, gradients, strength=strength)
            moved[each is problem] += (each.params[0] - before).norm()
    assert moved[True] < 1.02 * moved[False]


def test_a_finite_gradient_whose_norm_overflows_moves_nothing_under_the_paper_s_base(fast):
    problem = Problem(fast.device, [(50,)], trace=True)
    before = problem.params[0].clone()
    problem.step(fast.form, [torch.full_like(before, 1e25)], base="gradient")
    assert torch.equal(problem.params[0], before)
