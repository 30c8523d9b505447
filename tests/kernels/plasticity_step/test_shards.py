"""A tensor stepped as several shards, pass by pass, by every form, without processes: sums meet between passes."""

import itertools

import pytest
import torch
from steps import BASES, PASSES, Problem, factors_of

from neuroplastic_kernels.plasticity_step.passes import COLUMNS, Shard

SIZES = [
    (70, 300),
    (5, 32),
    (2,),
    (9,),
]  # the first of several blocks and chunks; the third has fewer rows than processes
PROCESSES = 3


def parts_of(tensor):
    """Rows of each process, as DTensor deals them."""
    rows = -(-tensor.shape[0] // PROCESSES)
    return [tensor[min(start, len(tensor)) : start + rows] for start in range(0, PROCESSES * rows, rows)]


def boxes_of(shape):
    rows = -(-shape[0] // PROCESSES)
    return [Shard(tuple(shape), (number * rows, *[0] * (len(shape) - 1))) for number in range(PROCESSES)]


def step_in_parts(problem, form, gradients, workspaces, neuron_factors=None, **options):
    """One step of a problem, whose tensors all processes hold parts of."""
    rows = [torch.zeros(PROCESSES, 6, dtype=s["sums"].dtype, device=s["sums"].device) for s in problem.states]
    running = []
    for process in range(PROCESSES):
        states, factors = [], []
        for place, (param, state) in enumerate(zip(problem.params, problem.states, strict=True)):
            rows[place][process, 1:] = state["sums"]
            part = {name: parts_of(value)[process] for name, value in state.items() if value.shape == param.shape}
            if "scales" in state:
                part["scales"] = parts_of(state["scales"].movedim(1, 0))[process].movedim(0, 1).contiguous()
            part |= {name: state[name].clone() for name in ("step", "skipped")}
            states.append(part | {"sums": rows[place][process, 1:], "nonfinite": rows[place][process, 0]})
            factor = None if neuron_factors is None else neuron_factors[place]
            factors.append(factor and factor._replace(values=parts_of(factor.values)[process]))
        lists = (
            [parts_of(tensor)[process] for tensor in problem.params],
            [parts_of(g)[process] for g in gradients],
            states,
        )
        options = {"lr": 0.01, "base": "adamw", "betas": (0.9, 0.999), **options}
        shards = [boxes_of(param.shape)[process] for param in problem.params]
        extra = {"workspace": workspaces[process], "neuron_factors": neuron_factors and factors, "shards": shards}
        running.append((PASSES[form](*lists, **extra, **options), states))
    exact = options["base"] == "gradient" or options.get("statistics") == "exact"
    for names in itertools.zip_longest(*(passes for passes, _ in running)):
        assert len(set(names)) == 1
        if names[0] != "apply" or not exact:
            for each in rows:
                each[:, COLUMNS[names[0]]] = each[:, COLUMNS[names[0]]].sum(0)
    for place, state in enumerate(problem.states):
        state["sums"].copy_(rows[place][0, 1:] if not rows[place][0, 0] else state["sums"])
        for name in ("step", "skipped"):
            values = {states[place][name].item() for _, states in running}
            assert len(values) == 1
            state[name].fill_(values.pop())
        if "scales" in state:
            state["scales"].copy_(torch.cat([states[place]["scales"] for _, states in running], 1))


def whole_and_in_parts(fast, steps, problem=None, change=lambda gradients, number: gradients, **options):
    whole, parts = (Problem(fast.device, **{"sizes": SIZES, **(problem or {})}) for _ in range(2))
    workspaces = [{} for _ in range(PROCESSES)]
    for number in range(steps):
        whole.step(fast.form, change(whole.gradients(), number), **options)
        step_in_parts(parts, fast.form, change(parts.gradients(), number), workspaces, **options)
    return whole, parts


def assert_equal(whole, parts, tolerance):
    for want, got in zip(whole.tensors(), parts.tensors(), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("base", BASES)
def test_sums_meet_between_passes(base, statistics, fast):
    options = {"base": base, "statistics": statistics, "weight_decay": 0.1, "warmup_steps": 2}
    assert_equal(*whole_and_in_parts(fast, 3, **options), 1e-5)


def test_float32_and_8_bit_state_and_random_rounding_have_the_bits_of_the_whole(fast):
    for problem in ({"dtypes": (torch.bfloat16,)}, {"sizes": [(70, 304), (6, 128)], "eight_bit": True}):
        options = {"strength": 0.0, "stochastic_rounding": True, "seed": 2**40 + 7}
        assert_equal(*whole_and_in_parts(fast, 3, problem, **options), 0)


@pytest.mark.parametrize("options", [{}, {"statistics": "exact"}, {"strength": 0.0}], ids=str)
def test_a_shard_is_skipped_for_what_another_holds(options, fast):
    def spoil(gradients, number):
        if number == 1:
            gradients[0][69, 7], gradients[2][0] = torch.nan, torch.inf
        return gradients

    whole, parts = whole_and_in_parts(fast, 3, change=spoil, skip_nonfinite=True, **options)
    assert_equal(whole, parts, 1e-5)
    assert [state["skipped"].item() for state in parts.states] == [1, 0, 1, 0]


def test_factors_of_a_shard_s_neurons(fast):
    factors = [factors_of(70, 0, fast.device), None, factors_of(2, 0, fast.device), None]
    assert_equal(*whole_and_in_parts(fast, 2, neuron_factors=factors), 1e-5)


@pytest.mark.parametrize(
    ("shape", "starts", "origin"),
    [((2, 5), (1, 0), 5), ((4, 2), (0, 3), None), ((1, 2), (2, 3), 13), ((4, 5), (0, 0), 0), ((0, 5), (4, 0), 0)],
)
def test_a_run_of_the_whole_has_an_origin(shape, starts, origin):
    assert Shard((4, 5), starts).origin(shape) == origin
