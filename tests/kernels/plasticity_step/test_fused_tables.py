"""The tables of a fused step: tensors that move, change or are not for the kernels."""

import pytest
import torch
from fused_step import TOLERANCE, Problem, assert_close

from neuroplastic_kernels import NeuronFactor


def test_unaligned_tensors(device):
    shifted = lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)  # noqa: E731
    expected, problem = Problem(device), Problem(device)
    problem.params = [shifted(p) for p in problem.params]
    problem.state[1] = [shifted(m) for m in problem.state[1]]
    for _ in range(2):
        expected.step("reference", expected.gradients())
        problem.step("fused", [shifted(g) for g in problem.gradients()])
    assert_close(problem, expected)


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
