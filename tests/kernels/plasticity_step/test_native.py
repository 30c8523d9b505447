"""What only the native step has: threads, blocks, torch's bits, and tensors that go to the reference."""

import pytest
import torch
from steps import BASES, HALVES, Problem, assert_close, assert_same_bits, both, factors_of, needs_compiler

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import NeuronFactor, plasticity_step, select

pytestmark = needs_compiler
BLOCK = 8192  # of the source
SIZES = [(), (1,), (7, 13), (BLOCK - 1,), (BLOCK,), (2 * BLOCK + 5,)]


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("base", BASES)
def test_double_precision_is_the_reference_to_the_last_digits(base, statistics, decoupled):
    options = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled, "warmup_steps": 3, "statistics": statistics}
    problem = {"sizes": SIZES, "dtypes": [torch.float64], "trace": True}
    assert_close(*both(("cpu", "native"), 4, problem, base=base, **options), {torch.float64: 1e-14, torch.float32: 0})


def torch_adamw(problem):
    params = [p.clone().requires_grad_() for p in problem.params]
    return params, torch.optim.AdamW(params, lr=0.01, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("forgets", [True, False], ids=["no history", "no strength"])
def test_without_plasticity_every_bit_is_that_of_torch_s_fused_adamw(forgets, dtype):
    """In whole vectors: torch rounds the few elements left over at a tensor's end in another way."""
    problem = Problem(sizes=[(16,), (64, 48), (BLOCK,), (2 * BLOCK + 48,)], dtypes=[dtype])
    params, adamw = torch_adamw(problem)
    for _ in range(20):
        gradients = problem.gradients()
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        adamw.step()
        options = {} if forgets else {"strength": 0.0}
        problem.step("native", gradients, weight_decay=0.1, decoupled_weight_decay=True, **options)
        for state in problem.states if forgets else ():
            state["sums"].zero_()
    for p, q, state in zip(params, problem.params, problem.states, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(state[name], adamw.state[p][name]) for name in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("dtypes", [[torch.float64], HALVES], ids=["double", "halves"])
@pytest.mark.parametrize("base", BASES)
def test_no_bit_depends_on_the_number_of_threads(base, dtypes, statistics):
    sizes = [(41 * BLOCK + 77,), *SIZES, (4 * BLOCK,), (7 * BLOCK + 1,), *[(3,)] * 50]
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(Problem(sizes=sizes, dtypes=dtypes).run("native", base=base, statistics=statistics))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_to_the_nearest_and_ties_to_even(dtype):
    """Where a step is one exact sum, every bit is the reference's."""
    big = torch.finfo(dtype).max / 3
    params = torch.cat([torch.ones(16), big * torch.ones(2), torch.tensor([torch.inf, torch.nan, -0.0, 1e-40])])
    grads = torch.cat([-torch.arange(16) / 4 * torch.finfo(dtype).eps, torch.tensor([-2.5 * big, 1e-3, 1, 1, 0, 0])])
    exact = {"base": "gradient", "lr": 1.0, "strength": 0.0, "max_update_norm": None, "homeostatic_rate": 0.0}
    problems = []
    for form in ("native", "reference"):
        problem = Problem(sizes=[params.shape], dtypes=[dtype])
        problem.params[0].copy_(params.to(dtype))
        problem.step(form, [grads.to(dtype)], **exact)
        problems.append(problem)
    assert problems[0].params[0][:3].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(problems[0].params, problems[1].params, rtol=0, atol=0, equal_nan=True)


def test_a_nan_of_any_bits_stays_one_in_bfloat16():
    problem = Problem(sizes=[(1,)], dtypes=[torch.bfloat16])
    problem.states[0]["exp_avg"].copy_(torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32))
    problem.run("native", 1, base="momentum", strength=0.0)
    assert problem.params[0].isnan()


NEURONS = {  # shape, dim: neurons in rows, in columns (also counted from the end), between both, alone, and one only
    "rows": ((5, 7), 0), "columns": ((5, 7), -1), "kernels": ((3, 4, 5), 1), "bias": ((6,), 0), "one": ((4, 1), 1),
    "rows of more than a block": ((3, BLOCK + 5), 0), "columns over blocks": ((BLOCK // 8 + 1, 17), 1),
}  # fmt: skip


@pytest.mark.parametrize("case", NEURONS)
def test_neuron_factors_reach_their_neurons(case):
    shape, dim = NEURONS[case]
    factors = [factors_of(shape[dim], dim), None]
    problem = {"sizes": [shape, (9,)], "dtypes": [torch.float64]}
    got, want = both(("cpu", "native"), 3, problem, neuron_factors=factors)
    assert_close(got, want, {torch.float64: 1e-13, torch.float32: 0})
    assert not torch.equal(got.params[0], Problem(**problem).run("native").params[0])


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("case", NEURONS)
def test_neuron_factors_of_one_change_no_bit_and_of_zero_leave_the_neuron_alone(case, dtype):
    shape, dim = NEURONS[case]
    problem, values = {"sizes": [shape], "dtypes": [dtype]}, torch.ones(shape[dim])
    start, plain, ones = (Problem(**problem) for _ in range(3))
    plain.run("native")
    ones.run("native", neuron_factors=[NeuronFactor(values, dim)])
    assert_same_bits(plain, ones)
    values[-1] = 0
    frozen = Problem(**problem).run("native", neuron_factors=[NeuronFactor(values, dim)])
    got, want, old = (each.params[0].movedim(dim, 0) for each in (frozen, plain, start))
    assert torch.equal(got[:-1], want[:-1])
    assert torch.equal(got[-1], old[-1])
    assert all(torch.equal(frozen.states[0][name], value) for name, value in plain.states[0].items())


def test_codes_go_to_the_reference():
    assert_same_bits(*both(("cpu", "native"), problem={"sizes": [(300,), (20, 32)], "eight_bit": True}))


@pytest.mark.parametrize("base", BASES)
def test_stochastic_rounding_draws_the_reference_s_numbers(base):
    problem = {"sizes": [(2 * BLOCK + 5,), (33,)], "dtypes": [torch.bfloat16]}
    for seed in (5, 2**40 + 5, 2**63 - 3):
        native, reference = both(("cpu", "native"), 2, problem, base=base, stochastic_rounding=True, seed=seed)
        same = torch.cat([(a == b).flatten() for a, b in zip(native.params, reference.params, strict=True)])
        assert same.float().mean() > 0.998  # the last digit of float32 decides about the others
    other = Problem(**problem).run("native", 2, base=base, stochastic_rounding=True, seed=6)
    assert (native.params[0] != other.params[0]).float().mean() > 0.01


def test_stochastic_rounding_leaves_what_is_not_finite():
    problem = Problem(sizes=[(4,)], dtypes=[torch.bfloat16])
    problem.params[0].copy_(torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]))
    problem.step("native", [torch.zeros(4, dtype=torch.bfloat16)], strength=0.0, stochastic_rounding=True)
    torch.testing.assert_close(
        problem.params[0].float(), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]), equal_nan=True
    )


def test_autograd_notices_the_step():
    weight = torch.nn.Parameter(torch.randn(4))
    optimizer = NeuroPlastic([weight], lr=0.1, backend="native")
    weight.square().sum().backward()
    loss = weight.square().sum()  # needs the weight as it is now
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_other_devices_and_operations_without_this_form_are_refused():
    meta = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError, match="backend='native' is for CPU tensors, got one on meta; use backend='auto'"):
        plasticity_step([meta], [meta], [{}], backend="native", lr=0.1, base="adamw", betas=(0.9, 0.99))
    with pytest.raises(ValueError, match="neuron_reinit has no native form"):
        select("neuron_reinit", "native")
