"""What the compiled step keeps from step to step: its table, and the sums of the traces."""

import pytest
import torch
from native_step import BASES, BLOCK, Lists, assert_identical, draw, factors, needs_compiler

from neuroplastic_kernels import NeuronFactor, plasticity_step

pytestmark = needs_compiler


def lists_stepped(steps, between=lambda lists: None, **options):
    lists = Lists([(3, 5), (2 * BLOCK + 5,)], **options)
    for seed in range(1, steps + 1):
        lists.step(seed)
        between(lists)
    return lists.all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_sums_of_traces_that_a_step_left_change_no_bit(base, dtype):
    kept = lists_stepped(4, base=base, dtype=dtype)
    assert_identical(kept, lists_stepped(4, lambda lists: lists.workspace.clear(), base=base, dtype=dtype))


def test_a_step_takes_the_sums_that_the_last_one_left():
    """Seen from a write that torch does not count; gradients have moved in between."""
    unseen = lists_stepped(2, lambda lists: lists.states[0][1].numpy().fill(3.0))
    seen = lists_stepped(2, lambda lists: lists.states[0][1].fill_(3.0))
    assert_identical([each[:1] for each in unseen], [each[:1] for each in seen])
    assert not torch.equal(unseen[0][1], seen[0][1])


def foreign(trace):
    """The same memory as a tensor that torch counts the same number of writes to, but other values."""
    other = torch.from_numpy(trace.numpy())
    while other._version < trace._version:
        other.mul_(2)
    return other


WRITES = {
    "in place": lambda lists: lists.states[0][1].mul_(2),
    "a part of it": lambda lists: lists.states[0][1][5:].fill_(1.0),
    "another tensor": lambda lists: lists.states[0].__setitem__(1, draw((2 * BLOCK + 5,), torch.float32, 9).abs()),
    "another tensor in its place": lambda lists: lists.states[0].__setitem__(1, foreign(lists.states[0][1])),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITES)
def test_a_trace_written_between_steps_is_added_up_anew(case):
    def write_and_forget(lists):
        WRITES[case](lists)
        lists.workspace.clear()

    assert_identical(lists_stepped(4, WRITES[case]), lists_stepped(4, write_and_forget))


def test_tensors_without_a_gradient_for_a_while_keep_their_sums_and_are_left_alone():
    def steps(forgets):
        lists = Lists([(3, 5), (2 * BLOCK + 5,), (4,)])
        for seed, without in enumerate([(), (1,), (0, 2), (1,), (0, 1, 2), ()], start=1):
            before = [[each[k].clone() for k in without] for each in lists.all()]
            lists.step(seed, without)
            assert_identical([[each[k] for k in without] for each in lists.all()], before)
            if forgets:
                lists.workspace.clear()
        return lists.all()

    assert_identical(steps(forgets=False), steps(forgets=True))


def test_one_workspace_serves_lists_that_change():
    """Other tensors, other dtypes and forms, other neuron factors: each step looks at what it is given."""
    first, second = Lists([(3, 5), (9,)]), Lists([(3, 5), (9,)], torch.bfloat16)
    second.workspace = first.workspace
    apart, other = Lists([(3, 5), (9,)]), Lists([(3, 5), (9,)], torch.bfloat16)
    for seed in range(1, 7):
        changed = {
            "stochastic_rounding": seed % 2 == 0,
            "neuron_factors": [None, factors((9,), 0)] if seed > 3 else None,
        }
        for lists in (first, second, apart, other):
            lists.options |= changed
            lists.step(seed)
    assert_identical(first.all(), apart.all())
    assert_identical(second.all(), other.all())


def test_a_factor_moved_to_another_dimension_is_seen():
    lists, values = Lists([(4, 4)]), torch.tensor([0.0, 1, 1, 1])
    for dim in (0, 1):
        before = lists.params[0].clone()
        lists.options["neuron_factors"] = [NeuronFactor(values, dim)]
        lists.step(dim + 1)
        assert torch.equal(lists.params[0].select(dim, 0), before.select(dim, 0))


@pytest.mark.parametrize("wrong", ["steps", "neuron_factors"])
def test_lists_that_become_unequal_are_refused(wrong):
    workspace, p = {}, [torch.zeros(2)]
    lists = {name: [torch.zeros(2)] for name in ("grads", "traces", "exp_avgs", "exp_avg_sqs")}
    lists |= {"params": p, "steps": [torch.zeros(())], "neuron_factors": None}
    options = {"lr": 0.1, "base": "adamw", "betas": (0.9, 0.99), "compile": True, "workspace": workspace}
    plasticity_step(**lists, **options)
    with pytest.raises(ValueError, match="lists of tensors must be of one length"):
        plasticity_step(**{**lists, wrong: []}, **options)
    assert lists["steps"][0] == 1
