"""The tables of a fast step: tensors that move, change or are not for the kernels."""

import gc
import weakref

import pytest
import torch
from steps import FORMS, Problem, assert_close, assert_same_bits

from neuroplastic_kernels.plasticity_step import tables
from neuroplastic_kernels.plasticity_step.lists import Lists
from neuroplastic_kernels.plasticity_step.reference import NeuronFactor


def shifted(x):
    """The same numbers from an address on that is no multiple of 16."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def stepped(fast, change, steps=3, **problem):
    """The same problem by both forms; `change(problem, number)` comes before each step and returns its gradients."""
    problems = [Problem(fast.device, **problem) for _ in range(2)]
    for each, form in zip(problems, (fast.form, "reference"), strict=True):
        for number in range(steps):
            each.step(form, change(each, number))
    return problems


@pytest.mark.parametrize("part", ["params", "gradients", "exp_avg", "all"])
def test_unaligned_tensors(part, fast):
    def change(problem, number):
        if number == 1 and part in ("params", "all"):
            problem.params = [shifted(p) for p in problem.params]
        for state in problem.states if number == 1 else ():
            state |= {name: shifted(state[name]) for name in ("exp_avg", "exp_avg_sq") if part in (name, "all")}
        gradients = problem.gradients()
        return [shifted(g) for g in gradients] if number and part in ("gradients", "all") else gradients

    assert_close(*stepped(fast, change))


def test_gradients_may_move_vanish_and_come_back(fast):
    absent = [(), (0, 4), (1, 2, 3), (0, 1, 2, 3, 4), ()]

    def change(problem, number):
        held.add(id(problem.workspace.get("prepared")))
        return [None if i in absent[number] else g for i, g in enumerate(problem.gradients())]

    held = set()
    fused_one, reference = stepped(fast, change, len(absent))
    assert_close(fused_one, reference)
    assert [state["step"].item() for state in fused_one.states] == [3, 3, 3, 3, 3]
    assert len(held) == 2  # None, which the first step of each and the reference find, and one for all others


def test_a_tensor_that_never_had_a_gradient_gets_one_of_another_dtype(fast):
    assert_close(*stepped(
        fast, lambda problem, number: [g.half() if number else None for g in problem.gradients()], sizes=[(300,), (4,)]
    ))  # fmt: skip


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "sums", "step", "trace"])
def test_state_that_is_replaced_is_seen(name, fast):
    """As load_state_dict does."""

    def change(problem, number):
        for state in problem.states if number else ():
            state[name] = torch.full_like(state[name], 2.0)
        return problem.gradients()

    assert_close(*stepped(fast, change, trace=True))


def test_parameters_whose_data_is_swapped_are_seen(fast):
    def change(problem, number):
        if number:
            old = [p.data for p in problem.params]
            for p in problem.params:
                p.data = p.data.clone()
            kept.append(([p.clone() for p in old], old))
        return problem.gradients()

    kept = []
    assert_close(*stepped(fast, change))
    assert all(torch.equal(was, now) for pair in kept for was, now in zip(*pair, strict=True))


def test_data_swapped_for_a_part_of_itself_is_seen(fast):
    """At the same address, of the same state."""

    def change(problem, number):
        if number == 1:
            problem.params[0].data = problem.params[0].data[:200]
            for name in ("exp_avg", "exp_avg_sq"):
                problem.states[0][name] = problem.states[0][name][:200]
        return problem.gradients()

    assert_close(*stepped(fast, change, sizes=[(300,), (20,)]))


def test_a_square_that_is_turned_is_seen(fast):
    """Same address, shape and dtype."""

    def change(problem, number):
        if number == 1:
            problem.params[0].data = problem.params[0].data.t()
        return problem.gradients()

    assert_close(*stepped(fast, change, sizes=[(20, 20)]))


@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_memory_taken_for_another_kind_of_parameter_is_seen(change, fast):
    """As a small model finds it that went to the CPU, was converted there and came back."""
    forms = (fast.form, "reference")
    problems = [Problem(fast.device, [(4, 6, 5)]) for _ in forms]
    for problem, form in zip(problems, forms, strict=True):
        gradient, factors = problem.gradients()[0], NeuronFactor(torch.linspace(0, 2, 6, device=fast.device), 1)
        problem.step(form, [gradient], neuron_factors=[factors])
        if change == "dtype":
            halves = [x.flatten().view(torch.bfloat16)[:120].view(4, 6, 5) for x in (problem.params[0], gradient)]
            param, gradient = (half.copy_(torch.arange(1, 121).view(4, 6, 5)) for half in halves)
        else:
            param, gradient, state = problem.params[0].view(5, 6, 4), gradient.view(5, 6, 4), problem.states[0]
            state |= {name: state[name].view(5, 6, 4) for name in ("exp_avg", "exp_avg_sq")}
        problem.params = [param]
        problem.step(form, [gradient], neuron_factors=[factors])
    assert_close(*problems)


def test_state_that_was_cut_in_place_is_refused(fast):
    """Its memory may be another tensor's by now."""
    problem = Problem(fast.device, [(300,)]).run(fast.form, 1)
    problem.states[0]["exp_avg"].data = problem.states[0]["exp_avg"].data[:200]
    with pytest.raises(RuntimeError, match=r"parameter 0 has shape \(300,\) but its gradient or state another"):
        problem.run(fast.form, 1)


@pytest.mark.parametrize(
    "wrong", [torch.ones(16), torch.ones(4097), torch.ones(64, 64)], ids=["shorter", "longer", "square"]
)
def test_a_later_gradient_of_another_shape_is_refused(wrong, fast):
    problem = Problem(fast.device, [(7,), (4096,)]).run(fast.form, 1)
    before = [tensor.clone() for tensor in problem.tensors()]
    with pytest.raises(RuntimeError, match=r"parameter 1 has shape \(4096,\) but its gradient or state another"):
        problem.step(fast.form, [torch.ones(7, device=fast.device), wrong.to(fast.device)])
    assert all(torch.equal(tensor, was) for tensor, was in zip(problem.tensors(), before, strict=True))


def test_a_later_sparse_gradient_is_refused(fast):
    problem = Problem(fast.device, [(7,), (4, 5)]).run(fast.form, 1)
    with pytest.raises(RuntimeError, match=r"does not take torch\.sparse_coo gradients"):
        problem.step(fast.form, [None, problem.gradients()[1].to_sparse()])
    assert [state["step"].item() for state in problem.states] == [1, 1]


class Wrapped(torch.Tensor):
    """Stands for tensors that may keep their numbers elsewhere, as sharded ones do."""


ODD_GRADIENTS = {
    "another class": lambda g: g.as_subclass(Wrapped),
    "columns": lambda g: g.t().contiguous().t(),
    "negative": lambda g: torch._neg_view(g.neg()),
    "float64": lambda g: g.double(),
    "every other element": lambda g: torch.stack([g, g], -1)[..., 0],
    "zeros without memory": lambda g: torch._efficientzerotensor(g.shape, device=g.device),
}


@pytest.mark.parametrize("odd", ODD_GRADIENTS.values(), ids=ODD_GRADIENTS)
def test_an_odd_gradient_sends_its_tensor_away_for_that_step_alone(odd, fast):
    others = []

    def change(problem, number):
        gradients = problem.gradients()
        others.append(getattr(problem.workspace.get("prepared"), "others", None))
        return [gradients[0], odd(gradients[1])] if number == 1 else gradients

    assert_close(*stepped(fast, change, 4, sizes=[(7,), (60, 70)]))
    assert others[:4] == [None, frozenset(), frozenset([1]), frozenset()]


def test_a_step_counter_on_another_device_sends_its_tensor_away():
    near = Problem("cpu", [(5,)]).states[0]
    far = near | {"step": torch.zeros((), device="meta")}
    tensors = [torch.zeros(5)] * 2
    lists = Lists(tensors, tensors, [near, far], None, None)
    assert [tables.is_taken(lists, number, False, False) for number in range(2)] == [True, False]


def test_lists_of_other_lengths_are_seen(fast):
    long, short = Problem(fast.device), Problem(fast.device)
    for size in (5, 3, 5):
        gradients = long.gradients()
        FORMS[fast.form](
            long.params[:size], gradients[:size], long.states[:size], lr=0.01, base="adamw", betas=(0.9, 0.999),
            workspace=long.workspace,
        )  # fmt: skip
        short.step("reference", [g if index < size else None for index, g in enumerate(short.gradients())])
    assert_close(long, short)


def test_neuron_factors_are_read_in_place_and_seen_when_they_move(fast):
    problems, held = [Problem(fast.device, [(6, 6), (9,)]) for _ in range(2)], []
    for problem, form in zip(problems, (fast.form, "reference"), strict=True):
        values = torch.ones(6, device=fast.device)
        places = [
            None,
            NeuronFactor(values, 0),
            NeuronFactor(values, 0),
            NeuronFactor(values, 1),
            NeuronFactor(values * 2, 1),
        ]
        for number, factor in enumerate(places):
            values[3] = 1 / (1 + number)
            problem.run(form, 1, neuron_factors=None if factor is None else [factor, None])
            held.append(problem.workspace.get("prepared"))
    assert_close(*problems)
    assert [held[number] is held[number + 1] for number in range(4)] == [False, True, False, False]


def test_a_first_step_in_inference_mode_is_no_hindrance(fast):
    fused_one, reference = (Problem(fast.device) for _ in range(2))
    for problem, form in ((fused_one, fast.form), (reference, "reference")):
        with torch.inference_mode():
            gradients = problem.gradients()
            problem.step(form, gradients)
        problem.step(form, problem.gradients())
        problem.step(form, gradients)
    assert_close(fused_one, reference)


def test_a_workspace_keeps_no_tensor_of_the_caller_s_alive(fast):
    problem = Problem(fast.device, [(5,)]).run(fast.form, 1)
    workspace, tensors = problem.workspace, [weakref.ref(tensor) for tensor in problem.tensors()]
    del problem
    gc.collect()
    assert workspace["prepared"].tables
    assert not any(tensor() is not None for tensor in tensors)


def test_one_workspace_serves_lists_that_change(fast):
    first, second, apart, other = (
        Problem(fast.device, dtypes=[dtype]) for dtype in 2 * [torch.float32, torch.bfloat16]
    )
    second.workspace = first.workspace
    for _ in range(3):
        for problem in (first, second, apart, other):
            problem.run(fast.form, 1)
    assert_same_bits(first, apart)
    assert_same_bits(second, other)
