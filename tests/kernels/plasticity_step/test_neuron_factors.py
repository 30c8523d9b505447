"""Factors on the steps of single neurons, as the optimizer takes them."""

import copy
import pickle

import pytest
import torch
from steps import Problem, factors_of

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import NeuronFactor


@pytest.mark.parametrize("base", ["gradient", "adamw", "momentum"])
def test_a_step_with_factors_is_the_step_times_them(base, where):
    """On the parameters alone: the state is that of a step without, and homeostasis does not give back what they take."""
    device, backend = where
    shapes, dims = [(6, 11), (6, 11), (4, 3, 5, 2), (70, 251)], (0, 1, -2, 1)
    start, plain, scaled = (Problem(device, shapes) for _ in range(3))
    factors = [factors_of(shape[dim], dim, device) for shape, dim in zip(shapes, dims, strict=True)]
    plain.run(backend, 1, base=base)
    scaled.run(backend, 1, base=base, neuron_factors=factors)
    for before, p, q, factor in zip(start.params, plain.params, scaled.params, factors, strict=True):
        torch.testing.assert_close(q - before, (p - before) * factor.over(p), rtol=1e-4, atol=1e-6)
    for state, other in zip(plain.states, scaled.states, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_decoupled_decay_acts_on_frozen_neurons(where):
    device, backend = where
    problem = Problem(device, [(6, 11)])
    before, frozen = problem.params[0].clone(), NeuronFactor(torch.zeros(6, device=device), 0)
    problem.run(backend, 1, lr=0.1, neuron_factors=[frozen], weight_decay=0.5, decoupled_weight_decay=True)
    torch.testing.assert_close(problem.params[0], before * (1 - 0.1 * 0.5))


def optimizer_of(model, backend="auto"):
    return NeuroPlastic(
        [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias]}], lr=0.1, backend=backend
    )


def with_gradients(model):
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    return model


def test_the_optimizer_takes_factors_for_some_of_its_parameters(where):
    device, backend = where
    model = with_gradients(torch.nn.Linear(5, 4)).to(device)
    optimizer = optimizer_of(model, backend)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    values = torch.ones(4, device=device)
    optimizer.neuron_factors[model.weight] = NeuronFactor(values, 0)
    for frozen in (2, 3):
        values.fill_(1)[frozen] = 0
        before = model.weight.detach().clone(), model.bias.detach().clone()
        with_gradients(model)
        optimizer.step()
        moved = (model.weight != before[0]).any(1)
        assert moved.tolist() == [row != frozen for row in range(4)]
        assert (model.bias != before[1]).all()
    assert "neuron_factors" not in optimizer.state_dict()
    optimizer.load_state_dict(optimizer.state_dict())
    assert model.weight in optimizer.neuron_factors


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_has_factors_of_its_own(copied):
    model = with_gradients(torch.nn.Linear(5, 4))
    optimizer = optimizer_of(model)
    optimizer.neuron_factors[model.bias] = NeuronFactor(torch.zeros(4), 0)
    twin = copied(optimizer)
    (weight,), (bias,) = (group["params"] for group in twin.param_groups)
    assert list(twin.neuron_factors) == [bias]
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    before = bias.detach().clone()
    twin.step()
    assert torch.equal(bias, before)
    optimizer.neuron_factors[model.bias].values.fill_(1)
    assert twin.neuron_factors[bias].values.sum() == 0


def test_an_optimizer_pickled_without_factors_has_none():
    optimizer = optimizer_of(torch.nn.Linear(5, 4))
    state = optimizer.__getstate__()
    del state["neuron_factors"]
    old = NeuroPlastic.__new__(NeuroPlastic)
    old.__setstate__(state)
    assert old.neuron_factors == {}


BAD = {
    "shape": (lambda: NeuronFactor(torch.ones(5), 0), r"float32 tensor of shape \(4,\) .*; got .* of shape \(5,\)"),
    "dtype": (lambda: NeuronFactor(torch.ones(4).double(), 0), r"must be a contiguous float32 .* got torch.float64"),
    "device": (lambda: NeuronFactor(torch.ones(4, device="meta"), 0), "on cpu; got torch.float32 of shape .* on meta"),
    "stride": (lambda: NeuronFactor(torch.ones(8)[::2], 0), "must be a contiguous .* got non-contiguous"),
    "dim": (lambda: NeuronFactor(torch.ones(4), 2), "dim from -2 to 1; got 2"),
    "no dim": (lambda: NeuronFactor(torch.ones(4), None), "dim from -2 to 1; got None"),
    "a tensor": (lambda: torch.ones(4), r"must be a NeuronFactor\(values, dim\) .* got Tensor"),
    "a list": (lambda: NeuronFactor([1.0] * 4, 0), r"whose values are a tensor; got NeuronFactor of a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_factors_that_do_not_fit_are_refused_and_nothing_changes(case, where):
    device, backend = where
    if device != "cpu":
        pytest.skip("the messages name the CPU")
    make, message = BAD[case]
    model = with_gradients(torch.nn.Linear(5, 4))
    optimizer = optimizer_of(model, backend)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.neuron_factors[model.weight] = make()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_factors_of_a_parameter_the_optimizer_does_not_hold_are_refused():
    optimizer = optimizer_of(with_gradients(torch.nn.Linear(5, 4)))
    optimizer.neuron_factors[torch.nn.Parameter(torch.ones(3, 2))] = NeuronFactor(torch.ones(3), 0)
    with pytest.raises(ValueError, match=r"entry for \(3, 2\), which is no parameter of this optimizer: remove it"):
        optimizer.step()
