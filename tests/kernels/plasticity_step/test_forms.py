"""Native and fused steps against the reference: every base, option, dtype and size."""

import pytest
import torch
from steps import BASES, FORMS, HALVES, SIZES, Problem, assert_close, assert_same_bits, both

from neuroplastic_kernels.plasticity_step.reference import NeuronFactor

OPTIONS = {
    "default": {},
    "warm-up": {"warmup_steps": 2, "plasticity_scale": 0.9},
    "half strength": {
        "strength": 0.5,
        "signal_weights": (0.1, 0.2, 0.7),
        "alpha_range": (0.5, 1.2),
        "trace_decay": 0.0,
    },
    "no plasticity": {"strength": 0.0},
    "coupled decay, eps of 0": {"weight_decay": 0.1, "eps": 0.0},
    "decoupled decay, ascent": {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "no homeostasis": {"max_update_norm": None, "homeostatic_rate": 0.0, "betas": (0.0, 0.0)},
    "other homeostasis": {"max_update_norm": 3.0, "target_rms": 5.0, "homeostatic_rate": 0.05},
    "exact, coupled decay": {"statistics": "exact", "weight_decay": 0.1, "maximize": True},
    "exact, no plasticity": {"statistics": "exact", "strength": 0.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("trace", [False, True], ids=["rms", "trace"])
@pytest.mark.parametrize("base", BASES)
def test_every_base_activity_and_option(base, trace, options, fast):
    assert_close(*both(fast, problem={"trace": trace}, base=base, **options))


@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("base", BASES)
def test_mixed_kinds_in_one_list(base, statistics, fast):
    """Dtypes, activities, and tensors that are not for the kernels: float64 and columns."""
    problems = [Problem(fast.device, [*SIZES, (6, 7), (30,)], HALVES) for _ in range(2)]
    for problem, form in zip(problems, (fast.form, "reference"), strict=True):
        problem.params[5] = problem.params[5].float().t()
        problem.params[6] = problem.params[6].double()
        problem.states = [problem.new_state(p, index % 2 == 0, False) for index, p in enumerate(problem.params)]
        problem.run(form, base=base, statistics=statistics, weight_decay=0.1, decoupled_weight_decay=True)
    assert_close(*problems)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_gradients_of_another_dtype_than_their_parameter(dtypes, fast):
    problems = [Problem(fast.device, [(300,)], dtypes[:1]) for _ in range(2)]
    for problem, form in zip(problems, (fast.form, "reference"), strict=True):
        for _ in range(2):
            problem.step(form, [g.to(dtypes[1]) for g in problem.gradients()])
    assert_close(*problems)


def test_bfloat16_parameters_are_rounded_to_the_nearest(fast):
    """From the same float32 value, ties to even."""
    half, full = (Problem(fast.device, [(17000,)]) for _ in range(2))
    half.params[0] = half.params[0].to(torch.bfloat16)
    full.params[0] = half.params[0].float()
    gradients = [g.to(torch.bfloat16) for g in half.gradients()]
    half.step(fast.form, gradients)
    full.step(fast.form, [g.float() for g in gradients])
    assert torch.equal(half.params[0], full.params[0].to(torch.bfloat16))
    ties = Problem(fast.device, [(2,)], [torch.bfloat16])
    ties.params[0].copy_(torch.tensor([1.0, 1.0 + 2.0**-7]))
    ties.step(fast.form, [torch.full_like(ties.params[0], -(2.0**-8))], base="momentum", betas=(0.5, 0.9), lr=1.0)
    assert ties.params[0].tolist() == [1.0, 1.0 + 2.0**-6]


@pytest.mark.parametrize("statistics", ["previous", "exact"])
def test_the_same_inputs_give_the_same_bits(statistics, fast):
    first, second = (
        Problem(fast.device, dtypes=HALVES, eight_bit=True).run(
            fast.form, statistics=statistics, stochastic_rounding=True
        )
        for _ in range(2)
    )
    assert_same_bits(first, second)


def test_no_bit_depends_on_other_tensors_or_on_when_tables_were_made(fast):
    together, anew = Problem(fast.device).run(fast.form, steps=2), Problem(fast.device)
    for _ in range(2):
        for param, gradient, state in zip(anew.params, anew.gradients(), anew.states, strict=True):
            FORMS[fast.form]([param], [gradient], [state], lr=0.01, base="adamw", betas=(0.9, 0.999))
    assert_same_bits(together, anew)


def torch_optimizer(base, params):
    if base == "adamw":
        return torch.optim.AdamW(params, lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    return torch.optim.SGD(params, lr=0.01, momentum=0.9 if base == "momentum" else 0.0)


@pytest.mark.parametrize("forgets", [True, False], ids=["no history", "no strength"])
@pytest.mark.parametrize("base", BASES)
def test_without_history_or_strength_the_step_is_that_of_torch(base, forgets, fast):
    if forgets and base == "gradient":
        pytest.skip("the paper's step has no history")
    problem, twin = Problem(fast.device), Problem(fast.device)
    for p in twin.params:
        p.requires_grad_()
    optimizer = torch_optimizer(base, twin.params)
    options = {"max_update_norm": None, "homeostatic_rate": 0.0, "strength": 1.0 if forgets else 0.0}
    options |= {"weight_decay": 0.1, "decoupled_weight_decay": True} if base == "adamw" else {}
    for _ in range(4):
        problem.step(fast.form, problem.gradients(), base=base, **options)
        for p, g in zip(twin.params, twin.gradients(), strict=True):
            p.grad = g
        optimizer.step()
        for state in problem.states if forgets else ():
            state["sums"].zero_()
    for p, q in zip(problem.params, twin.params, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("base", BASES)
def test_gradients_are_multiplied_by_their_factor(base, fast):
    scaled, plain = Problem(fast.device), Problem(fast.device)
    factor = torch.tensor([2.0**-10], device=fast.device)
    for _ in range(2):
        scaled.step(fast.form, [g * 2.0**10 for g in scaled.gradients()], gradient_factor=factor, base=base)
        plain.step(fast.form, plain.gradients(), base=base)
    assert_same_bits(scaled, plain)


def test_the_learning_rate_may_be_a_tensor(fast):
    options = {"weight_decay": 0.1, "decoupled_weight_decay": True}
    rates = (torch.tensor(0.5, device=fast.device), torch.tensor(0.5, dtype=torch.float64), 0.5)
    first, *others = (Problem(fast.device).run(fast.form, 2, lr=rate, **options) for rate in rates)
    for other in others:
        assert_same_bits(first, other)


@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("base", BASES)
def test_every_neuron_s_step_has_its_factor(base, statistics, fast):
    shapes, dims = [(6, 11), (6, 11), (9,), (4, 3, 5, 2), (70, 251), (70, 251), (8,)], (0, 1, 0, -2, 1, 0, None)
    values = [None if dim is None else torch.rand(shape[dim], generator=torch.Generator().manual_seed(dim)) * 2
              for shape, dim in zip(shapes, dims, strict=True)]  # fmt: skip
    values[4][7] = 0
    factors = [
        None if dim is None else NeuronFactor(each.to(fast.device), dim) for each, dim in zip(values, dims, strict=True)
    ]
    options = {"base": base, "statistics": statistics, "weight_decay": 0.1, "decoupled_weight_decay": True}
    fused, reference = both(fast, 2, {"sizes": shapes}, neuron_factors=factors, **options)
    assert_close(fused, reference)
    ones = [None if each is None else each._replace(values=torch.ones_like(each.values)) for each in factors]
    plain, unit = (
        Problem(fast.device, shapes).run(fast.form, 2, neuron_factors=each, **options) for each in (None, ones)
    )
    assert_same_bits(plain, unit)


def test_what_the_reference_refuses_is_refused_and_nothing_changes(fast):
    problem = Problem(fast.device, [(7,), (4, 6)])
    before, (first, second) = [tensor.clone() for tensor in problem.tensors()], problem.gradients()
    lists = (problem.params, [first, second], problem.states)
    options = {"lr": 0.1, "base": "adamw", "betas": (0.9, 0.99)}
    for form in (fast.form, "reference"):
        with pytest.raises(RuntimeError, match=r"parameter 1 has shape \(4, 6\) but its gradient or state another"):
            problem.step(form, [first, second.view(6, 4)])
        with pytest.raises(RuntimeError, match=r"does not take torch.sparse_coo gradients, got one of shape \(4, 6\)"):
            problem.step(form, [first, second.to_sparse()])
        with pytest.raises(ValueError, match="neuron_factors of parameter 0, of shape"):
            problem.step(
                form, [first, second], neuron_factors=[NeuronFactor(torch.ones(8, device=fast.device), 0), None]
            )
        with pytest.raises(TypeError, match="signals"):
            problem.step(form, [first, second], signals="all")
        for index in range(3):
            short = [each[:1] if place == index else each for place, each in enumerate(lists)]
            with pytest.raises(ValueError, match="lists of tensors must be of one length"):
                FORMS[fast.form](*short, **options)
    assert all(torch.equal(tensor, was) for tensor, was in zip(problem.tensors(), before, strict=True))


def test_an_empty_list_is_no_error(fast):
    FORMS[fast.form]([], [], [], lr=0.1, base="adamw", betas=(0.9, 0.999))
