"""What holds for single kinds of sites."""

import pytest
import torch
from kinds import KINDS, decisions, hold_constant
from tiny import GATED
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_neuroplastic import DropIn, DropInConfig, compact, reserve
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.sites import find_sites, inert_slots


def test_the_fold_is_exact_where_the_whole_kernel_lies_inside():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 3, 5, padding=2))
    dropin = DropIn(model, DropInConfig(stop=None))
    hold_constant(dropin.sites[0], 1, 0.7)
    x = torch.randn(4, 2, 12)
    model(x).sum().backward()
    dropin.step()
    with torch.no_grad():
        before = model(x)
        dropin.apply(decisions(Action.REPLACE, dropin, 1))
        change = (model(x) - before).abs().amax((0, 1))
    assert change[2:-2].max() < 1e-5
    assert change[[0, 1, -2, -1]].min() > 1e-3


@pytest.mark.parametrize("family", GATED)
def test_gated_models_grow_prune_and_reload_as_stock_models(family, tmp_path):
    kind = KINDS[family]
    model = kind.build()
    config = DropInConfig.plasticity(8, prune=(0.4, 0.7), interval=1, maturity=0)
    dropin = DropIn(model, config, total_steps=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    widths = []
    for seed in range(10):
        kind.train_step(model, optimizer, seed)
        dropin.step(optimizer)
        widths.append({int(known.active.sum()) for known in dropin.statistics})
        if seed == 5:
            _same_as_stock(model, kind, tmp_path / "midway")
    assert widths[0] == {32}
    assert widths[-1] == {24}
    _same_as_stock(model, kind, tmp_path / "end")
    expected = kind.in_both_modes(model)
    dropin.unpatch()
    assert compact(model) == 16
    for narrow, wide in zip(kind.in_both_modes(model), expected, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-6)
    _same_as_stock(model, kind, tmp_path / "compact")


def _same_as_stock(model, kind, folder):
    model.save_pretrained(folder)
    stock, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert stock.config.intermediate_size == model.config.intermediate_size
    assert torch.equal(kind.outputs(stock.eval()), kind.outputs(model.eval()))
    model.train()


def test_scaling_leaves_the_gate_alone():
    model = KINDS["llama"].build()
    dropin = DropIn(model, KINDS["llama"].config(synaptic_lr=0.1))
    before = [(site.up.weight.detach().clone(), site.gate.weight.detach().clone()) for site in dropin.sites]
    KINDS["llama"].train_step(model)
    dropin.step()
    for site, known, (up, gate) in zip(dropin.sites, dropin.statistics, before, strict=True):
        assert torch.equal(site.gate.weight, gate)
        torch.testing.assert_close(site.up.weight, up * known.scale.unsqueeze(1))
        assert (known.scale != 1).any()


@pytest.mark.parametrize("only_the_second", [True, False])
def test_new_neurons_do_not_wake_the_reserve_of_the_site_before(only_the_second):
    """A fresh row of the second site listens to all neurons of the first, its silent slots among them."""
    kind = KINDS["chain"]
    model = kind.build()
    reserve(model, 3)
    dropin = DropIn(model, kind.config(layers=[1] if only_the_second else None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(6):
        kind.train_step(model, optimizer, seed)
        dropin.step(optimizer)
        dropin.apply(decisions((Action.REPLACE, Action.PRUNE)[seed % 2], dropin, seed), optimizer)
        first, second = find_sites(model)
        slots = inert_slots(first)
        assert slots[8:].all()
        assert inert_slots(second)[6:].all()
        for parameter in (first.up.weight, first.up.bias):
            assert not parameter[slots].any()
        assert not first.down.weight[:, slots].any()


def test_the_mean_output_of_a_gru_unit_goes_into_the_biases_behind_it():
    model, dropin = KINDS["gru"].observed()
    columns = [
        (model.head.weight[:, 2].clone(), model.head.bias),
        (model.gru.weight_hh_l1[:, 2].clone(), model.gru.bias_hh_l1),
    ]
    before = [bias.detach().clone() for _, bias in columns]
    mean = dropin.statistics[0].mean_output[2].clone()
    assert mean.abs() > 1e-3
    dropin.apply(decisions(Action.REPLACE, dropin, 2))
    own = [[], [2, 9, 16]]
    for (column, bias), then, rows in zip(columns, before, own, strict=True):
        others = [row for row in range(len(bias)) if row not in rows]
        torch.testing.assert_close(bias[others], (then + mean * column)[others])
        assert not bias[rows].any()


@pytest.mark.parametrize("name", ["llama", "convolutions"])
def test_freeze_existing_lets_only_new_neurons_learn(name):
    kind = KINDS[name]
    model = kind.build()
    reserve(model, 2)
    dropin = DropIn(model, kind.config(freeze_existing=True, layers=[0]))
    (site,) = dropin.sites
    dropin.apply([Decision(Action.GROW, ~known.active) for known in dropin.statistics])
    before = [neuron_slice.view.transpose(0, neuron_slice.dim).clone() for neuron_slice in site.slices]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for seed in range(3):
        kind.train_step(model, optimizer, seed)
        dropin.step(optimizer)
    for neuron_slice, then in zip(site.slices, before, strict=True):
        if isinstance(neuron_slice.tensor, nn.Parameter):
            now = neuron_slice.view.transpose(0, neuron_slice.dim)
            assert torch.equal(now[:-2], then[:-2])
            assert not torch.equal(now[-2:], then[-2:])
