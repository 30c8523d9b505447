"""DropIn in a plain loop: the dead are found and reborn, the living are left alone."""

import pytest
import torch
from tiny import FAMILIES, MORE_FAMILIES, tiny_batch, tiny_mlp, tiny_model, train
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig
from hf_neuroplastic.neurons.decide.decisions import Action, Decision

EAGER = {"interval": 1, "maturity": 2, "max_fraction": 1.0, "threshold": 0.01, "stop": None}


def _plant_dead(dropin, neurons):
    """Incoming weights zero and a very negative bias: gelu gives 0 for every input, and no gradient passes."""
    with torch.no_grad():
        for site in dropin.sites:
            site.up.weight[neurons] = 0.0
            site.up.bias[neurons] = -30.0


@pytest.mark.parametrize("criterion", ["contribution", "dormant", "gradient", "utility"])
@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_exactly_the_planted_dead_neurons_are_reborn(family, criterion):
    model = tiny_model(family)
    threshold = 0.0 if criterion == "gradient" else 0.01
    dropin = DropIn(model, DropInConfig(**{**EAGER, "threshold": threshold, "criterion": criterion}))
    planted = [1, 7, 18, 19]
    _plant_dead(dropin, planted)
    if criterion == "gradient":  # |dz| does not depend on the activation: cut the outgoing weights
        with torch.no_grad():
            for site in dropin.sites:
                site.down.weight[:, planted] = 0.0
    before = [site.up.weight.detach().clone() for site in dropin.sites]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    train(model, dropin, optimizer, [tiny_batch(family, seed=seed) for seed in range(2)])
    for site, old, known, count in zip(dropin.sites, before, dropin.statistics, dropin.replaced, strict=True):
        changed = (site.up.weight != old).any(dim=1).nonzero().squeeze(1).tolist()
        assert changed == planted
        assert int(count) == len(planted)
        assert known.age.tolist() == [0 if i in planted else 2 for i in range(site.width)]


def test_new_neurons_do_not_take_after_the_dead_ones_still_waiting():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**{**EAGER, "max_fraction": 0.05, "init": "layer"}))
    _plant_dead(dropin, list(range(12)))  # two of twelve go in this event
    healthy = [site.up.bias[12:].mean().item() for site in dropin.sites]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    train(model, dropin, optimizer, [tiny_batch("ast", seed=seed) for seed in range(2)])
    for site, mean, count in zip(dropin.sites, healthy, dropin.replaced, strict=True):
        assert int(count) == 2
        torch.testing.assert_close(site.up.bias[:2], torch.full((2,), mean))
        assert site.up.bias[2:12].tolist() == [-30.0] * 10


def test_a_healthy_model_is_left_alone_and_training_equals_stock_training():
    batches = [tiny_batch("wav2vec2", seed=seed) for seed in range(4)]
    stock, patched = tiny_model("wav2vec2"), tiny_model("wav2vec2")
    dropin = DropIn(patched, DropInConfig(**{**EAGER, "threshold": 0.0}))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (stock, patched)]
    for batch in batches:
        for model, optimizer in zip((stock, patched), optimizers, strict=True):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        dropin.step(optimizers[1])
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), patched.parameters(), strict=True))


def test_reborn_neurons_learn():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**EAGER, outgoing="zero"))
    _plant_dead(dropin, [3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, dropin, optimizer, [tiny_batch("ast", seed=seed) for seed in range(2)])
    reborn = [site.up.weight[3].detach().clone() for site in dropin.sites]
    assert all(not site.down.weight[:, 3].any() for site in dropin.sites)
    train(model, dropin, optimizer, [tiny_batch("ast", seed=seed) for seed in range(2, 5)])
    for site, start in zip(dropin.sites, reborn, strict=True):
        assert site.down.weight[:, 3].any()  # moves first: the outgoing weights were zero
        assert not torch.equal(site.up.weight[3], start)


def test_a_skipped_step_is_forgotten():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**EAGER))
    model(**tiny_batch("ast")).loss.backward()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step_was_skipped = True  # as on accelerate's wrapper
    dropin.step(optimizer)
    assert dropin.step_count == 0
    for known in dropin.statistics:
        assert not known.sums.any()
        assert not known.age.any()


def test_a_layer_that_no_gradient_reaches_is_named_once(caplog):
    model = nn.ModuleDict({"used": tiny_mlp(), "idle": tiny_mlp()})
    dropin = DropIn(model, DropInConfig(interval=1, maturity=0, threshold=float("inf"), stop=None))
    for _ in range(3):
        with torch.no_grad():
            model["idle"](torch.randn(4, 6))
        model["used"](torch.randn(4, 6)).sum().backward()
        dropin.step()
    assert caplog.text.count("no gradient came to the neurons of idle.0") == 1
    assert [int(count) for count in dropin.replaced] == [6, 0]  # a pair each time


def test_weights_of_another_kind_are_refused_by_name():
    class Quantised(torch.Tensor):
        pass

    model = tiny_mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Quantised))
    with pytest.raises(TypeError, match="a weight of '0' is a Quantised, quantised or of another form"):
        DropIn(model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_batch_does_not_condemn_anyone(bad):
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**{**EAGER, "maturity": 0, "synaptic_lr": 0.1}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = tiny_batch("ast")
    batch["input_values"][0, 0, 0] = bad
    model(**batch).loss.backward()
    dropin.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_synaptic_scaling_draws_activities_together():
    def spread(statistics):
        return (statistics.activity.std() / statistics.activity.mean()).item()

    torch.manual_seed(0)
    model = tiny_mlp(hidden=32)
    dropin = DropIn(model, DropInConfig(synaptic_lr=0.05, statistics_decay=0.9, stop=None, threshold=0.0))
    spreads = []
    for _ in range(60):
        model(torch.randn(64, 6)).sum().backward()
        dropin.step()
        spreads.append(spread(dropin.statistics[0]))
    assert spreads[-1] < 0.7 * spreads[0]
    scale = dropin.statistics[0].scale
    assert 0.1 <= scale.min() < 1.0 < scale.max() <= 2.0


def test_report_holds_plain_floats():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**{**EAGER, "maturity": 100}))
    _plant_dead(dropin, [0, 1, 2])
    assert dropin.report()["neuro/dead_fraction"] == 0.0  # nothing observed yet
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    train(model, dropin, optimizer, [tiny_batch("ast")])
    report = dropin.report()
    assert all(type(value) is float for value in report.values())
    assert report["neuro/dead_fraction"] == pytest.approx(6 / 48)
    assert report["neuro/mean_age"] == 1.0
    assert report["neuro/replaced_total"] == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = tiny_model("ast").to(dtype)
    dropin = DropIn(
        model,
        DropInConfig(
            **{
                **EAGER,
                "threshold": float("inf"),
                "max_fraction": 0.1,
                "synaptic_lr": 0.01 if dtype is torch.float64 else 0.0,
            }
        ),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [tiny_batch("ast", seed=seed) for seed in range(4)]
    for batch in batches:
        batch["input_values"] = batch["input_values"].to(dtype)
    train(model, dropin, optimizer, batches)
    assert all(int(count) > 0 for count in dropin.replaced)
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())


def test_nothing_is_decided_on_old_observations():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(**{**EAGER, "threshold": float("inf"), "max_fraction": 0.1}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    train(model, dropin, optimizer, [tiny_batch("ast", seed=seed) for seed in range(2)])
    replaced = [int(count) for count in dropin.replaced]
    assert replaced == [4, 4]
    for _ in range(5):
        dropin.step(optimizer)  # no backward pass since
    assert [int(count) for count in dropin.replaced] == replaced


def test_layers_frozen_later_are_left_alone():
    model = tiny_model("ast")
    settings = {**EAGER, "threshold": float("inf"), "maturity": 0, "max_fraction": 0.1, "synaptic_lr": 0.1}
    dropin = DropIn(model, DropInConfig(**settings))
    model(**tiny_batch("ast")).loss.backward()
    frozen = model.audio_spectrogram_transformer.layers[0].mlp.requires_grad_(False)
    model.audio_spectrogram_transformer.layers[1].mlp.fc2.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dropin.step()
    assert [int(count) for count in dropin.replaced] == [0, 4]
    assert frozen.fc1.weight.equal(before["audio_spectrogram_transformer.layers.0.mlp.fc1.weight"])
    bias = "audio_spectrogram_transformer.layers.1.mlp.fc2.bias"
    assert model.state_dict()[bias].equal(before[bias])


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_loss_scale_of_a_plain_loop_is_divided_out(scale):
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(stop=None))
    (model(**tiny_batch("ast")).loss * scale).backward()
    dropin.step(gradient_scale=torch.tensor(scale))
    plain = DropIn(other := tiny_model("ast"), DropInConfig(stop=None))
    other(**tiny_batch("ast")).loss.backward()
    plain.step()
    for a, b in zip(dropin.statistics, plain.statistics, strict=True):
        assert torch.equal(a.averages, b.averages)  # a power of two: exact


def test_decisions_of_ones_own_are_counted_and_draw_new_numbers():
    dropin = DropIn(tiny_mlp(), DropInConfig(stop=None))
    mask = torch.arange(10) == 4
    rows = []
    for _ in range(2):
        dropin.apply([Decision(Action.REPLACE, mask)])
        rows.append(dropin.sites[0].up.weight[4].clone())
    assert not torch.equal(*rows)
    assert int(dropin.replaced[0]) == 2


def test_a_split_never_takes_more_than_there_are_donors():
    model = tiny_mlp(hidden=10)
    dropin = DropIn(model, DropInConfig(init="split", stop=None))
    x = torch.randn(5, 6)
    with torch.no_grad():
        model[2].weight[:, :8] = 0.0  # the neurons that go contribute nothing
    expected = model(x)
    dropin.apply([Decision(Action.REPLACE, torch.arange(10) < 8)])
    assert int(dropin.replaced[0]) == 2
    torch.testing.assert_close(model(x), expected)


def test_everyone_may_be_pruned():
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(stop=None))
    dropin.apply([Decision(Action.PRUNE, torch.ones(10, dtype=torch.bool))])
    assert not model[0].weight.any()
    assert dropin.report()["neuro/mean_age"] == 0.0
