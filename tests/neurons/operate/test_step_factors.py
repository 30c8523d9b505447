"""Young neurons take steps of their own size, and off is off."""

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.observe.hooks import is_watched
from hf_neuroplastic.neurons.operate.step_factors import plasticity_factors

GRADED = {"young_plasticity": 2.0, "old_plasticity": 0.5, "consolidation": 10}
NOBODY = {"max_fraction": 0.0, "stop": None}
NEW = torch.arange(10) == 4


@pytest.mark.parametrize(
    ("age", "fresh", "factor"),
    [(0, True, 2.0), (5, True, 1.25), (10, True, 0.5), (99, True, 0.5), (0, False, 0.5), (99, False, 0.5)],
)
def test_the_factor_goes_from_young_to_old(age, fresh, factor):
    found = plasticity_factors(torch.tensor([age]), torch.tensor([fresh]), DropInConfig(**GRADED))
    assert found.dtype is torch.float32
    assert found.tolist() == [factor]


def test_the_factor_falls_steadily_and_ends_exactly():
    ages = torch.arange(1500)
    config = DropInConfig(young_plasticity=3.3, old_plasticity=0.1)
    factors = plasticity_factors(ages, torch.ones(1500, dtype=torch.bool), config)
    assert bool((factors[1:] <= factors[:-1]).all())
    assert (factors[0], factors[1000]) == (torch.tensor(3.3), torch.tensor(0.1))


def _stepped(config, base="adamw", steps=1):
    """Weights before and after steps of a network whose neuron 4 is new, the optimizer, and the DropIn."""
    model = tiny_mlp()
    optimizer = NeuroPlastic(model.parameters(), lr=1e-2, base=base)
    dropin = DropIn(model, config)
    dropin.apply([Decision(Action.REPLACE, NEW)], optimizer)
    dropin.scale_steps(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(steps):
        torch.manual_seed(1)
        optimizer.zero_grad()
        model(torch.randn(32, 6)).square().sum().backward()
        optimizer.step()
        if steps > 1:
            dropin.step(optimizer)
    return before, dict(model.named_parameters()), optimizer, dropin


@pytest.mark.parametrize("base", ["adamw", "momentum", "gradient"])
def test_a_newborn_steps_four_times_as_far_as_an_old_neuron(base):
    before, plain, *_ = _stepped(DropInConfig(**NOBODY), base)
    _, graded, *_ = _stepped(DropInConfig(**NOBODY, **GRADED), base)
    factor = torch.where(NEW, 2.0, 0.5)
    shapes = {"0.weight": factor.unsqueeze(1), "0.bias": factor, "2.weight": factor, "2.bias": torch.tensor(1.0)}
    for name, scale in shapes.items():
        step, expected = graded[name] - before[name], scale * (plain[name] - before[name])
        assert expected.any()
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-7)


def test_old_neurons_can_be_held_still():
    before, after, *_ = _stepped(DropInConfig(**NOBODY, old_plasticity=0.0), steps=3)
    assert torch.equal(after["0.weight"][~NEW], before["0.weight"][~NEW])
    assert torch.equal(after["2.weight"][:, ~NEW], before["2.weight"][:, ~NEW])
    assert not torch.equal(after["0.weight"][NEW], before["0.weight"][NEW])
    assert not torch.equal(after["2.weight"][:, NEW], before["2.weight"][:, NEW])


def test_one_and_one_leave_the_optimizer_alone():
    _, plain, optimizer, _ = _stepped(DropInConfig(**NOBODY), steps=5)
    assert optimizer.neuron_factors == {}
    _, graded, *_ = _stepped(DropInConfig(**NOBODY, young_plasticity=1.0, old_plasticity=1.0, consolidation=3), steps=5)
    assert all(torch.equal(value, graded[name]) for name, value in plain.items())


def test_weights_that_an_optimizer_is_given_later_have_factors_too():
    model = nn.ModuleDict({"a": tiny_mlp(), "b": tiny_mlp()})
    dropin = DropIn(model, DropInConfig(max_fraction=0.0, young_plasticity=2.0, old_plasticity=0.0))
    optimizer = NeuroPlastic(model["b"].parameters(), lr=0.1)

    def step():
        sum(part(torch.randn(4, 6)).square().sum() for part in model.values()).backward()
        optimizer.step()
        model.zero_grad()
        dropin.step(optimizer)

    step()
    optimizer.add_param_group({"params": list(model["a"].parameters())})
    dropin.scale_steps(optimizer)
    before = model["a"][0].weight.detach().clone()
    step()
    assert torch.equal(model["a"][0].weight, before)


def test_factors_age_in_place():
    _, _, optimizer, dropin = _stepped(DropInConfig(**NOBODY, **GRADED), steps=2)
    up = dropin.sites[0].up.weight
    values, dim = optimizer.neuron_factors[up]
    assert dim == 0
    torch.testing.assert_close(values, torch.where(NEW, 1.7, 0.5))  # two of ten steps
    torch.manual_seed(2)
    next(iter(dropin.sites)).up.weight.grad = None
    dropin.statistics[0].age += 3
    dropin.apply([Decision(Action.REPLACE, torch.arange(10) == 7)], optimizer)
    assert optimizer.neuron_factors[up].values is values
    torch.testing.assert_close(values[[4, 7, 0]], torch.tensor([1.25, 2.0, 0.5]))
    state = dropin.state_dict()
    state["sites"]["0"]["age"][4] = 10
    dropin.load_state_dict(state)
    assert values[4] == 0.5


def test_unpatching_gives_the_optimizer_back():
    _, _, optimizer, dropin = _stepped(DropInConfig(**NOBODY, **GRADED))
    other = nn.Parameter(torch.zeros(2))
    optimizer.neuron_factors[other] = optimizer.neuron_factors[dropin.sites[0].up.bias]
    assert len(optimizer.neuron_factors) == 4
    dropin.unpatch()
    assert list(optimizer.neuron_factors) == [other]


def test_another_optimizer_takes_the_factors_over():
    _, _, first, dropin = _stepped(DropInConfig(**NOBODY, **GRADED))
    second = NeuroPlastic([parameter for group in first.param_groups for parameter in group["params"]])
    dropin.step(second)
    assert first.neuron_factors == {}
    assert len(second.neuron_factors) == 3


def test_the_first_step_sees_to_it():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**NOBODY, **GRADED))
    optimizer = NeuroPlastic(model.parameters())
    model(**tiny_batch("ast")).loss.backward()
    dropin.step(optimizer)
    assert len(optimizer.neuron_factors) == 3 * len(dropin.sites)


def test_channels_of_convolutions_have_factors_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3))
    optimizer = NeuroPlastic(model.parameters(), lr=1e-2)
    dropin = DropIn(model, DropInConfig(**NOBODY, old_plasticity=0.0))
    dropin.scale_steps(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randn(4, 2, 8, 8)).square().sum().backward()
    optimizer.step()
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == ["3.bias"]  # it belongs to no single neuron


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.AdamW(p), r"young_plasticity and old_plasticity.*AdamW.*train with .*NeuroPlastic"),
        (lambda p: None, "optimizer must be a torch.optim.Optimizer, got None"),
    ],
)
def test_an_optimizer_without_factors_is_refused_at_the_first_step(make, words):
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(**NOBODY, **GRADED))
    model(torch.randn(4, 6)).sum().backward()
    with pytest.raises(TypeError, match=words):
        dropin.step(make(model.parameters()))
    assert dropin.step_count == 0
    assert not dropin.statistics[0].age.any()


def test_layers_that_share_a_linear_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"young_plasticity or old_plasticity.*site '0'.*leave both at 1"):
        DropIn(model, DropInConfig(**GRADED))
    assert not is_watched(model)
    assert not model._load_state_dict_pre_hooks
