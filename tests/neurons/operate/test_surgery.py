"""Surgery keeps the function where it can, and says no before it writes."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_mlp, tiny_model
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, grow
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.sites import inert_slots


def _mask(width, *chosen):
    mask = torch.zeros(width, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _watched(family="ast", **settings):
    """A model whose neurons have been seen for one step."""
    model = tiny_model(family)
    dropin = DropIn(model, DropInConfig(stop=None, **settings))
    model(**tiny_batch(family)).loss.backward()
    dropin.step()
    return model, dropin


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_an_empty_decision_changes_nothing(family, action):
    model, dropin = _watched(family)
    before, statistics = _state(model), [s.state_dict() for s in dropin.statistics]
    dropin.apply([Decision(action, _mask(site.width)) for site in dropin.sites])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for known, old in zip(dropin.statistics, statistics, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in known.state_dict().items())


@pytest.mark.parametrize("init", ["normal", "fan_in", "layer", "split"])
@pytest.mark.parametrize("constant", [0.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_replacing_a_constant_neuron_does_not_change_the_output(family, constant, init):
    model = tiny_model(family)
    dropin = DropIn(model, DropInConfig(stop=None, init=init))
    for site in dropin.sites:
        with torch.no_grad():  # gelu(b) with no input: constant; gelu(0) = 0: silent
            site.up.weight[3].zero_()
            site.up.bias[3] = constant
    batch = tiny_batch(family)
    model(**batch).loss.backward()
    dropin.step()
    model.eval()
    expected = model(**batch).logits
    before = _state(model)
    dropin.apply([Decision(Action.REPLACE, _mask(site.width, 3)) for site in dropin.sites])
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_pruned_neurons_are_silent_and_grown_ones_inert(family):
    model, dropin = _watched(family)
    masks = [_mask(site.width, 0, 5) for site in dropin.sites]
    dropin.apply([Decision(Action.PRUNE, mask) for mask in masks])
    for site, known in zip(dropin.sites, dropin.statistics, strict=True):
        assert known.active.sum() == site.width - 2
        assert not site.up.weight[[0, 5]].any()
        assert not site.up.bias[[0, 5]].any()
        assert not site.down.weight[:, [0, 5]].any()
    model.zero_grad()
    model(**tiny_batch(family)).loss.backward()
    for site in dropin.sites:  # zero in, zero out: a slot in reserve receives no gradient
        assert not site.up.weight.grad[[0, 5]].any()
        assert not site.down.weight.grad[:, [0, 5]].any()

    model.eval()
    expected = model(**tiny_batch(family)).logits
    dropin.apply([Decision(Action.GROW, mask) for mask in masks])
    assert torch.equal(model(**tiny_batch(family)).logits, expected)
    for site, known in zip(dropin.sites, dropin.statistics, strict=True):
        assert known.active.all()
        assert site.up.weight[[0, 5]].any()


def test_actions_concern_only_the_slots_they_can():
    model, dropin = _watched()
    before = _state(model)
    dropin.apply([Decision(Action.GROW, _mask(site.width, 1)) for site in dropin.sites])  # nothing is in reserve
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    dropin.apply([Decision(Action.PRUNE, _mask(site.width, 1)) for site in dropin.sites])
    pruned = _state(model)
    dropin.apply([Decision(Action.REPLACE, _mask(site.width, 1)) for site in dropin.sites])  # 1 is not active
    assert all(torch.equal(value, pruned[name]) for name, value in model.state_dict().items())


def test_reborn_neurons_start_a_new_life():
    _, dropin = _watched(synaptic_lr=0.1)
    for known in dropin.statistics:
        assert known.scale[2] != 1.0
    dropin.apply([Decision(Action.REPLACE, _mask(site.width, 2)) for site in dropin.sites])
    for known in dropin.statistics:
        assert (known.age[2], known.weight[2], known.scale[2]) == (0, 0, 1)
        assert not known.rest.any()
        assert not known.averages[:, 2].any()
        assert known.age[3] == 1


ERRORS = [
    ([Decision(Action.REPLACE, torch.zeros(9, dtype=torch.bool))], ValueError, ["mask", "'0'", "(10,)", "(9,)"]),
    ([Decision(Action.REPLACE, torch.zeros(10))], ValueError, ["mask", "bool", "float32"]),
]


@pytest.mark.parametrize(("decisions", "error", "words"), ERRORS)
def test_errors(decisions, error, words):
    dropin = DropIn(tiny_mlp())
    with pytest.raises(error) as caught:
        dropin.apply(decisions)
    for word in words:
        assert word in str(caught.value)


def test_mixed_actions_are_refused():
    model = tiny_model("ast")
    dropin = DropIn(model)
    before = _state(model)
    masks = [_mask(site.width, 1) for site in dropin.sites]
    with pytest.raises(ValueError, match=r"all be .*REPLACE.*PRUNE"):
        dropin.apply([Decision(Action.REPLACE, masks[0]), Decision(Action.PRUNE, masks[1])])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_grown_channels_have_whole_normalization_though_that_is_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 3))
    model[1].requires_grad_(False)
    grow(model, 3)
    assert model[1].weight.tolist() == [1.0] * 7


def test_a_frozen_bias_does_not_wake_what_was_pruned():
    model = tiny_mlp()
    model[0].bias.requires_grad_(False)
    dropin, optimizer = DropIn(model, DropInConfig(stop=None)), torch.optim.AdamW(model.parameters())
    mask = torch.arange(10) < 4
    dropin.apply([Decision(Action.PRUNE, mask)], optimizer)
    assert torch.equal(dropin.statistics[0].active, ~mask)
    assert torch.equal(inert_slots(dropin.sites[0]), mask)
