"""8-bit state in the fused step, against the reference."""

import pytest
import torch
from steps import BASES, HALVES, Problem, assert_close, both, cut_into

from neuroplastic_kernels.plasticity_step.eight_bit import decoded

SIZES = [(5, 7), (5100,), (256,), (2, 256), (40, 48), (9, 192)]  # the first too small for codes; blocks of 16 and 64


def assert_nearly_equal(fused, reference):
    """Codes differ from the reference's where the last digit of float32 decides, and then by one."""
    for got, want in zip(fused.params, reference.params, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    for got, want in zip(fused.states, reference.states, strict=True):
        for name, expected in want.items():
            if expected.is_floating_point():
                torch.testing.assert_close(got[name], expected, rtol=1e-2, atol=1e-6)
            else:
                difference = (got[name].int() - expected.int()).abs()
                assert difference.max() <= 1
                assert (difference > 0).float().mean() < 3e-3


@pytest.mark.parametrize("shape", [None, (256, 1024), (1024, 4096)])
@pytest.mark.parametrize("trace", [False, True], ids=["rms", "trace"])
@pytest.mark.parametrize("base", BASES)
def test_eight_bit_state(base, trace, shape, device, monkeypatch):
    if shape:
        cut_into(monkeypatch, *shape)
    fused, reference = both(
        device, 1, {"sizes": SIZES, "trace": trace, "eight_bit": True}, base=base, weight_decay=0.01
    )
    assert_nearly_equal(fused, reference)
    for problem, form in ((fused, "fused"), (reference, "reference")):
        gradients = problem.gradients()
        gradients[1][300] = 1e9  # beside it the other v of its block are next to nothing
        problem.step(form, gradients, base=base, weight_decay=0.01)
    assert_nearly_equal(fused, reference)
    assert decoded(fused.states[1])["exp_avg_sq"].min() > 0


@pytest.mark.parametrize("statistics", ["previous", "exact"])
def test_eight_bit_state_of_every_dtype(statistics, device):
    problem = {"sizes": [(300,), (301,), (302,)], "dtypes": HALVES, "eight_bit": True}
    fused, reference = both(device, 2, problem, statistics=statistics, seed=2**35 + 1)
    for got, want in zip(fused.params, reference.params, strict=True):
        torch.testing.assert_close(got, want, rtol=2.0**-7 if want.dtype == torch.bfloat16 else 2e-3, atol=1e-3)
    for got, want in zip(fused.states, reference.states, strict=True):
        assert (got["exp_avg"].int() - want["exp_avg"].int()).abs().max() <= 1


def test_a_block_with_a_bad_value_is_bad_as_a_whole(device):
    problems = [Problem(device, [(1000,)], eight_bit=True) for _ in range(2)]
    for problem, form in zip(problems, ("fused", "reference"), strict=True):
        gradients = problem.gradients()
        gradients[0][300] = torch.nan
        problem.step(form, gradients)
        problem.run(form, 1)
    fused, reference = problems
    assert torch.equal(fused.params[0].isfinite(), reference.params[0].isfinite())
    assert fused.params[0].isfinite().sum() == 1000 - 256
    assert torch.equal(fused.states[0]["scales"].isfinite(), reference.states[0]["scales"].isfinite())


def test_zeros_stay_zeros(device):
    problem = Problem(device, [(700,)], eight_bit=True)
    before = problem.params[0].clone()
    for _ in range(2):
        problem.step("fused", [torch.zeros(700, device=device)])
    assert torch.equal(problem.params[0], before)
    assert not any(problem.states[0][name].any() for name in ("exp_avg", "exp_avg_sq", "scales", "sums"))


def test_float_and_eight_bit_state_in_one_list(device):
    """Tensors of float32 state have the bits that they have alone."""
    mixed = Problem(device, [(300,), (300,), (40,)])
    plain = Problem(device, [(300,), (300,), (40,)]).run("fused", 2)
    mixed.states[1] = mixed.new_state(mixed.params[1], False, True)
    mixed.run("fused", 2)
    for index in (0, 2):
        assert torch.equal(mixed.params[index], plain.params[index])
    torch.testing.assert_close(mixed.params[1], plain.params[1], rtol=0, atol=1e-2)
    assert_close(*both(device, 2, {"sizes": [(40,)], "eight_bit": True}))
