"""Reborn neurons carry initial optimizer state; every other element keeps its bits."""

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model
from torch import nn
from transformers import Adafactor

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.operate.optimizer_state import MAGNITUDES, state_slices, unwrap_optimizer
from hf_neuroplastic.neurons.sites import NeuronSlice

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "hf_adafactor": lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9),
    "neuroplastic": lambda p: NeuroPlastic(p, lr=1e-2),
    "neuroplastic_gradient": lambda p: NeuroPlastic(p, lr=1e-2, base="gradient"),
}
CHOSEN = [1, 4, 7]


def _mask(width=10):
    mask = torch.zeros(width, dtype=torch.bool)
    mask[CHOSEN] = True
    return mask


def _trained(make, steps=3):
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(stop=None, threshold=0.0))
    optimizer = make(model.parameters())
    for _ in range(steps):
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    return model, dropin, optimizer


def _snapshot(optimizer, model):
    return {
        (name, key): value.clone()
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_reborn_slices_are_initial_and_the_rest_is_untouched(make):
    model, dropin, optimizer = _trained(make)
    before = _snapshot(optimizer, model)
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    after = _snapshot(optimizer, model)
    neuron_dims = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    touched = 0
    for (name, key), value in after.items():
        old = before[name, key]
        dim = neuron_dims.get(name)
        belongs = dim is not None and value.ndim > 0 and value.numel() > 1
        if belongs and value.shape != dict(model.named_parameters())[name].shape:  # factored: [10, 1], [1, 10] or [10]
            belongs = value.numel() == 10
            dim = value.shape.index(10) if belongs else dim
        if not belongs:
            assert torch.equal(value, old), (name, key)
            continue
        touched += 1
        kept = [i for i in range(10) if i not in CHOSEN]
        assert torch.equal(value.index_select(dim, torch.tensor(kept)), old.index_select(dim, torch.tensor(kept)))
        reborn = value.index_select(dim, torch.tensor(CHOSEN))
        mean = old.index_select(dim, torch.tensor(kept)).mean(dim, keepdim=True).expand_as(reborn)
        torch.testing.assert_close(reborn, mean if key in MAGNITUDES else torch.zeros_like(reborn))
    assert touched or isinstance(optimizer, torch.optim.SGD)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_first_step_of_a_reborn_neuron_is_no_longer_than_its_neighbours(make):
    """A zeroed second moment late in training would make it 3.2 times the learning rate."""
    model, dropin, optimizer = _trained(make, steps=200)
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    before = model[2].weight.detach().clone()
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    moved = (model[2].weight.detach() - before).abs()
    assert moved[:, CHOSEN].max() <= 2.0 * moved.max(dim=1).values.max()
    assert moved[:, CHOSEN].max() <= 3e-2 or isinstance(optimizer, torch.optim.SGD)


def test_wrappers_are_looked_through():
    from accelerate import Accelerator

    optimizer = torch.optim.SGD(tiny_mlp().parameters(), lr=0.1)
    wrapped = Accelerator(cpu=True).prepare_optimizer(optimizer)
    assert wrapped is not optimizer
    assert unwrap_optimizer(wrapped) is optimizer
    assert unwrap_optimizer(optimizer) is optimizer
    with pytest.raises(TypeError, match=r"torch.optim.Optimizer.*float"):
        unwrap_optimizer(1.0)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (torch.zeros(10, 6, dtype=torch.uint8), r"'m'.*uint8.*floating-point"),
        (torch.zeros(4, 15), r"'m'.*\(4, 15\).*\(10, 6\)"),
    ],
)
def test_state_that_cannot_be_reset_is_refused_before_anything_changes(state, words):
    model, dropin, optimizer = _trained(OPTIMIZERS["adamw"])
    optimizer.state[model[0].weight]["m"] = state
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=words):
        dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameters_without_state_or_optimizer_have_no_slices():
    parameter = nn.Parameter(torch.zeros(3, 2))
    assert state_slices(None, NeuronSlice(parameter)) == ()
    assert state_slices(torch.optim.Adam([parameter]), NeuronSlice(parameter)) == ()
    assert state_slices(torch.optim.Adam([parameter]), None) == ()


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_a_whole_model_trains_on_after_surgery(family):
    model = tiny_model(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dropin = DropIn(model, DropInConfig(interval=2, maturity=1, max_fraction=0.2, threshold=float("inf"), stop=None))
    for seed in range(6):
        model(**tiny_batch(family, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    assert [int(count) for count in dropin.replaced] == [15, 15]  # ceil(.2 * 24) = 5, three times
    assert all(torch.isfinite(p).all() for p in model.parameters())
