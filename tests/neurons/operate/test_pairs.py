"""New neurons in pairs: they cancel, they are heard at once, and they earn their place."""

import pytest
import torch
from kinds import KINDS, decisions, hold_constant
from tiny import tiny_mlp
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic, OneOff
from hf_neuroplastic.neurons.decide.decisions import Action, Decision

CONSTANTS = [(name, 0.0) for name in KINDS] + [
    (name, 0.7) for name in ("llama_bias", "convolutions", "normalised", "chain")
]


def _entries(neuron_slice, neuron):
    return neuron_slice.view.select(neuron_slice.dim, neuron)


@pytest.mark.parametrize(("name", "constant"), CONSTANTS)
def test_a_pair_takes_the_place_of_two_constant_neurons_and_the_output_stays(name, constant):
    kind = KINDS[name]
    model = kind.build()
    dropin = DropIn(model, kind.config())
    for site in dropin.sites:
        hold_constant(site, 1, constant)
        hold_constant(site, 2, constant)
    kind.train_step(model)
    dropin.step()
    expected = kind.in_both_modes(model)
    dropin.apply(decisions(Action.REPLACE, dropin, 1, 2))
    for mine, stock in zip(kind.in_both_modes(model), expected, strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-5, atol=1e-5)
    for site in dropin.sites:
        for part in (part for weights in site.incoming for part in weights if part is not None):
            assert torch.equal(_entries(part, 1), _entries(part, 2))
        for part in site.outgoing:
            assert _entries(part, 1).any()
            assert torch.equal(_entries(part, 1), -_entries(part, 2))


@pytest.mark.parametrize("name", KINDS)
def test_the_first_gradient_parts_a_pair(name):
    kind = KINDS[name]
    model, dropin = kind.observed()
    dropin.apply(decisions(Action.REPLACE, dropin, 1, 2))
    kind.outputs(model).square().mean().backward()
    for site in dropin.sites:  # all gates of a GRU together: what it makes of its state has no gradient yet
        gradients = torch.cat([weight.block_of(weight.tensor.grad, 0).flatten(1) for weight, _ in site.incoming], 1)
        assert gradients[1].abs().max() > 1e-3 * gradients.abs().mean()  # a silent neuron's are 0
        torch.testing.assert_close(gradients[1], -gradients[2], rtol=1e-3, atol=1e-6)


def test_a_new_neuron_is_heard_like_a_neuron_of_the_upper_half():
    model = tiny_mlp(hidden=32)
    dropin = DropIn(model, DropInConfig(stop=None))
    model(torch.randn(64, 6)).square().mean().backward()
    dropin.step()
    scores, old = dropin.scores()[0], model[2].weight.detach().clone()
    dropin.apply([Decision(Action.REPLACE, torch.arange(32) < 6)])
    upper = (torch.argsort(scores[6:]) + 6)[13:16]  # of 26 survivors, from the median up
    assert torch.equal(model[2].weight[:, 0:6:2], old[:, upper])


@pytest.mark.parametrize(("count", "heard"), [(1, 0), (3, 2), (10, 0)])
def test_who_has_no_partner_or_no_model_starts_silent(count, heard):
    model = tiny_mlp(hidden=10)
    dropin = DropIn(model, DropInConfig(stop=None))
    mask = torch.arange(10) < count
    dropin.apply([Decision(Action.REPLACE, mask)])
    assert model[2].weight.any(dim=0)[:count].tolist() == [True] * heard + [False] * (count - heard)


def test_where_a_bias_stays_new_neurons_are_silent_rather_than_unequal():
    model = tiny_mlp(hidden=10)
    model[0].bias.requires_grad_(False)
    dropin = DropIn(model, DropInConfig(stop=None))
    dropin.apply([Decision(Action.REPLACE, torch.arange(10) < 4)], torch.optim.SGD(model.parameters(), lr=0.1))
    assert not model[2].weight[:, :4].any()


def test_neurons_replaced_at_their_first_judgement_are_counted():
    model = tiny_mlp(hidden=10)
    settings = {"threshold": float("inf"), "max_fraction": 1.0, "interval": 2, "maturity": 3, "stop": None}
    dropin = DropIn(model, DropInConfig(outgoing="zero", **settings))
    shares = []
    for _ in range(12):  # all go at steps 4, 8 and 12
        model(torch.randn(8, 6)).sum().backward()
        dropin.step()
        shares.append(dropin.report()["neuro/replaced_again"])
    assert shares[3::4] == pytest.approx([0.0, 1 / 2, 2 / 3])
    assert dropin.report()["neuro/replaced_total"] == 30.0


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=3e-2, momentum=0.9),
    "neuroplastic": lambda p: NeuroPlastic(p, lr=1e-3),
}


def _replaced_again(make, seed, **settings):
    """After 600 steps of fitting a random network whose outputs change sign on the way: total, share replaced again."""
    torch.manual_seed(seed)
    teacher, model = tiny_mlp(hidden=16), tiny_mlp(hidden=64)
    config = DropInConfig(interval=20, maturity=20, threshold=0.2, max_fraction=0.05, statistics_decay=0.9, **settings)
    dropin, optimizer = DropIn(model, config, total_steps=600), make(model.parameters())
    for step in range(600):
        x = torch.randn(32, 6)
        target = teacher(x).detach() * (-1) ** (step // 150)
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    report = dropin.report()
    return [report["neuro/replaced_total"], report["neuro/replaced_again"]]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pairs_stay_where_silent_neurons_are_replaced_again(make):
    silent = torch.tensor([_replaced_again(make, seed, outgoing="zero") for seed in range(2)]).mean(0)
    pairs = torch.tensor([_replaced_again(make, seed) for seed in range(2)]).mean(0)
    assert silent[1] > 0.5
    assert pairs[1] < 0.2
    assert pairs[0] < silent[0] / 2


@pytest.mark.parametrize("maturity", [0, 2])
def test_neurons_that_grew_in_the_same_step_are_neither_replaced_nor_models(maturity):
    model = tiny_mlp(hidden=8)
    settings = {"interval": 2, "maturity": maturity, "max_fraction": 0.25, "threshold": float("inf"), "stop": None}
    dropin = DropIn(model, DropInConfig(extra_neurons=OneOff(0.5, before=0, after=16), **settings), total_steps=4)
    for _ in range(2):
        model(torch.randn(8, 6)).square().mean().backward()
        dropin.step()
    assert int(dropin.statistics[0].active.sum()) == 24
    assert dropin.statistics[0].fresh[:8].sum() == dropin.replaced[0] == 6
    assert dropin.watched[0].replaced_again == 0
    assert model[2].weight.any(dim=0)[:8].all()
