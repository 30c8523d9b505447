"""Reserve is inert, growth and pruning undo each other, and every width is a stock model's."""

import pytest
import torch
from tiny import FAMILIES, MORE_FAMILIES, tiny_batch, tiny_decoder, tiny_mlp, tiny_model
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    VisionEncoderDecoderModel,
)

from hf_neuroplastic import (
    Constant,
    DropIn,
    DropInConfig,
    NeuroPlastic,
    OneOff,
    compact,
    load_side_files,
    reserve,
    save_side_files,
)
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.sites import find_sites, inert_slots

MAKERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "neuroplastic": lambda p: NeuroPlastic(p, lr=1e-3),
}


@torch.no_grad()  # a graph that is still held would remember the old shapes
def _logits(model, family):
    model.eval()
    logits = model(**tiny_batch(family)).logits
    model.train()
    return logits


def _step(model, optimizer, family, seed=0):
    model(**tiny_batch(family, seed=seed)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _stock(model, family, folder):
    model.save_pretrained(folder)
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForAudioClassification
    stock, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return stock


@pytest.mark.parametrize("family", FAMILIES)
def test_reserve_changes_no_output_and_is_a_stock_model(family, tmp_path):
    model = tiny_model(family)
    expected, parameters = _logits(model, family), dict(model.named_parameters())
    reserve(model, 5)
    assert model.config.intermediate_size == 29
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())
    assert all(site.width == 29 and int(inert_slots(site).sum()) == 5 for site in find_sites(model))
    torch.testing.assert_close(_logits(model, family), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        _stock(model, family, tmp_path).eval()(**tiny_batch(family)).logits, expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_reserve_stays_inert_through_training_and_compact_undoes_it(family, make):
    plain, wide = tiny_model(family), tiny_model(family)
    optimizers = [make(plain.parameters()), make(wide.parameters())]
    for model, optimizer in zip((plain, wide), optimizers, strict=True):
        _step(model, optimizer, family)
    reserve(wide, 0.25, optimizer=optimizers[1])
    assert wide.config.intermediate_size == 30
    states = optimizers[1].state
    for site in find_sites(wide):
        for parameter in (site.up.weight, site.up.bias, site.down.weight):
            assert all(
                value.shape in {parameter.shape, ()} or 30 in value.shape or 1 in value.shape
                for name, value in states.get(parameter, {}).items()
                if isinstance(value, torch.Tensor) and name != "sums"
            )
            assert not states.get(parameter, {}).get("sums", torch.zeros(())).any()  # those were of fewer elements
    for seed in range(1, 4):
        _step(wide, optimizers[1], family, seed)
    assert all(int(inert_slots(site).sum()) == 6 for site in find_sites(wide))
    expected = _logits(wide, family)
    assert compact(wide, optimizer=optimizers[1]) == 12
    assert wide.config.intermediate_size == 24
    torch.testing.assert_close(_logits(wide, family), expected, rtol=1e-5, atol=1e-6)
    _step(wide, optimizers[1], family, 4)  # shapes of parameters, gradients and state agree
    assert all(torch.isfinite(p).all() for p in wide.parameters())


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_growing_then_pruning_what_was_grown_is_the_identity(family):
    model = tiny_model(family)
    reserve(model, 4)
    expected, before = _logits(model, family), {name: v.clone() for name, v in model.state_dict().items()}
    dropin = DropIn(model, DropInConfig(stop=None))
    slots = [~known.active for known in dropin.statistics]
    assert all(int(mask.sum()) == 4 for mask in slots)
    dropin.apply([Decision(Action.GROW, mask) for mask in slots])
    assert all(bool(known.active.all()) for known in dropin.statistics)
    assert torch.equal(_logits(model, family), expected)  # zero outgoing weights
    dropin.apply([Decision(Action.PRUNE, mask) for mask in slots])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    dropin.unpatch()
    assert compact(model) == 4 * len(dropin.sites)


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_growing_by_split_leaves_the_output_unchanged(family):
    model = tiny_model(family)
    reserve(model, 6)
    dropin = DropIn(model, DropInConfig(init="split", stop=None))
    model(**tiny_batch(family)).loss.backward()
    dropin.step()
    expected = _logits(model, family)
    dropin.apply([Decision(Action.GROW, ~known.active) for known in dropin.statistics])
    assert not any(inert_slots(site).any() for site in dropin.sites)
    torch.testing.assert_close(_logits(model, family), expected, rtol=1e-5, atol=1e-5)


def _run(config, steps=20, family="wav2vec2"):
    model = tiny_model(family)
    dropin = DropIn(model, config, total_steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    widths = []
    for seed in range(steps):
        _step(model, optimizer, family, seed)
        dropin.step(optimizer)
        widths.append([int(known.active.sum()) for known in dropin.statistics])
    return model, dropin, widths


def test_dropin_grows_the_chosen_layer_only_but_all_layers_keep_one_width(tmp_path):
    model, dropin, widths = _run(DropInConfig.dropin(6, at=0.5, layers=[1], interval=1))
    assert [width for (width,) in widths] == [24] * 9 + [30] * 11
    assert model.config.intermediate_size == 30
    first, second = find_sites(model)
    assert (int(inert_slots(first).sum()), int(inert_slots(second).sum())) == (6, 0)
    assert dropin.statistics[0].fresh.tolist() == [False] * 24 + [True] * 6
    batch = tiny_batch("wav2vec2")
    stock = _stock(model, "wav2vec2", tmp_path)
    assert torch.equal(stock.eval()(**batch).logits, model.eval()(**batch).logits)


def test_plasticity_grows_and_prunes_back_to_where_it_began():
    model, dropin, widths = _run(DropInConfig.plasticity(8, prune=(0.4, 0.8), interval=1, maturity=2))
    course = [first for first, _ in widths]
    assert course[0] == max(course) == 32
    assert course[-1] == 24
    assert sorted(course, reverse=True) == course
    expected = _logits(model, "wav2vec2")
    dropin.unpatch()
    assert compact(model) == 16
    assert model.config.intermediate_size == 24
    torch.testing.assert_close(_logits(model, "wav2vec2"), expected, rtol=1e-5, atol=1e-6)


def test_compress_prunes_the_weakest_to_the_target():
    model, dropin, widths = _run(DropInConfig.compress(0.5, interval=1, maturity=1, between=(0.1, 0.5)), family="ast")
    assert widths[-1] == [12, 12]
    dropin.unpatch()
    assert compact(model) == 24
    assert model.config.intermediate_size == 12


@pytest.mark.parametrize("preset", ["redo", "continual_backprop", "original"])
def test_presets_without_growth_keep_the_width(preset):
    config = getattr(DropInConfig, preset)()
    assert DropInConfig.from_dict(config.to_dict()) == config
    _, _, widths = _run(config, steps=3)
    assert widths == [[24, 24]] * 3


@pytest.mark.parametrize("preset", [DropInConfig.dropin(3), DropInConfig.plasticity(3), DropInConfig.compress(0.3)])
def test_presets_with_schedules_survive_json(preset):
    assert DropInConfig.from_dict(preset.to_dict()) == preset


def test_continual_backprop_replaces_the_least_useful_at_its_rate():
    config = DropInConfig.continual_backprop(rate=0.01, interval=5, maturity=5)
    _, dropin, _ = _run(config, steps=20)
    assert [int(count) for count in dropin.replaced] == [8, 8]  # ceil(.05 * 24) = 2 in each of four events


def test_freeze_existing_lets_only_new_neurons_learn():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig.dropin(4, freeze_existing=True, interval=1), total_steps=5)
    before = [
        (s.up.weight.detach().clone(), s.down.weight.detach().clone(), s.down.bias.detach().clone())
        for s in dropin.sites
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for seed in range(5):
        _step(model, optimizer, "ast", seed)
        dropin.step(optimizer)
    for site, (up, down, bias) in zip(dropin.sites, before, strict=True):
        assert torch.equal(site.up.weight[:24], up[:24])
        assert torch.equal(site.down.weight[:, :24], down[:, :24])
        assert torch.equal(site.down.bias, bias)
        assert site.down.weight[:, 24:].any()
    dropin.unpatch()
    _step(model, optimizer, "ast")
    assert not torch.equal(dropin.sites[0].up.weight[:24], before[0][0][:24])


def test_a_sequential_grows_alone():
    model = tiny_mlp()
    x = torch.randn(4, 6)
    expected = model(x)
    reserve(model, 3)
    torch.testing.assert_close(model(x), expected)
    assert [model[0].out_features, model[2].in_features] == [13, 13]


def test_a_growing_run_whose_length_was_left_to_a_trainer_does_not_begin_without_one():
    dropin = DropIn(tiny_mlp(), DropInConfig.dropin(2), total_steps="trainer")
    with pytest.raises(ValueError, match=r"total_steps was left to a DropInCallback"):
        dropin.step()


ERRORS = [
    (lambda m: reserve(m, -1), ValueError, "count must be .* at least 0, got -1"),
    (lambda m: reserve(m, True), ValueError, "got True"),
    (lambda m: reserve(m, float("nan")), ValueError, "got nan"),
    (lambda m: (DropIn(m), reserve(m, 1)), RuntimeError, r"watches this model.*unpatch"),
    (lambda m: (DropIn(m), compact(m)), RuntimeError, r"watches this model.*unpatch"),
    (lambda m: reserve(tiny_mlp(activation=torch.nn.Sigmoid), 1), ValueError, "does not map 0 to 0"),
    (lambda m: DropInConfig(extra_neurons=5), TypeError, "extra_neurons must be a Schedule"),
    (lambda m: DropInConfig(extra_neurons=OneOff(0.0, 0, 64.0)), ValueError, "a float is a share.*got 64.0; write 64"),
    (lambda m: DropInConfig(extra_neurons=Constant(-1.5)), ValueError, r"must lie in \[-1, 8\], got -1.5"),
]


@pytest.mark.parametrize(("act", "error", "words"), ERRORS)
def test_errors_leave_the_model_as_it_was(act, error, words):
    model = tiny_model("ast")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        act(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_innermost_configuration_that_holds_the_width_is_changed(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = tiny_model("wav2vec2")

    wrapper = Wrapper()
    reserve(wrapper, 4)
    assert wrapper.backbone.config.intermediate_size == 28
    _stock(wrapper.backbone, "wav2vec2", tmp_path / "backbone")

    pair = VisionEncoderDecoderModel(encoder=tiny_model("vit").vit, decoder=tiny_decoder())
    reserve(pair, 3, layers="^encoder")
    assert (pair.encoder.config.intermediate_size, pair.decoder.config.intermediate_size) == (27, 24)
    reserve(pair, 2, layers="^decoder")
    pair.save_pretrained(tmp_path / "pair")
    again, info = VisionEncoderDecoderModel.from_pretrained(tmp_path / "pair", output_loading_info=True)
    assert not info["mismatched_keys"]
    assert (again.encoder.config.intermediate_size, again.decoder.config.intermediate_size) == (27, 26)


@pytest.mark.parametrize("backend", ["auto", "reference", "fused"])
def test_widths_that_change_under_the_optimizer_are_refused(backend):
    model = tiny_mlp()
    optimizer = NeuroPlastic(model.parameters(), backend=backend)
    for _ in range(2):
        model(torch.randn(5, 6)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    reserve(model, 300)
    model(torch.randn(5, 6)).sum().backward()
    with pytest.raises(RuntimeError, match="pass the optimizer to reserve or compact"):
        optimizer.step()


def test_pruning_goes_on_where_it_was_with_a_model_from_the_checkpoint(tmp_path):
    config = DropInConfig.compress(0.5, between=(0.0, 0.8), interval=1)
    batches, total = range(20), 20

    def go_on(model, dropin, seeds):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for seed in seeds:
            _step(model, optimizer, "wav2vec2", seed)
            dropin.step(optimizer)
        return [int(known.active.sum()) for known in dropin.statistics]

    model = tiny_model("wav2vec2")
    dropin = DropIn(model, config, total_steps=total)
    go_on(model, dropin, batches[:12])
    model.save_pretrained(tmp_path)
    save_side_files(dropin, tmp_path)
    again = type(model).from_pretrained(tmp_path).train()
    resumed = DropIn(again, config, total_steps=total)
    load_side_files(resumed, tmp_path)
    assert go_on(again, resumed, batches[12:]) == go_on(model, dropin, batches[12:]) == [12, 12]


@pytest.mark.parametrize("total", [7, 90])
def test_presets_end_where_they_promise_however_short_the_run(total):
    _, _, grown = _run(DropInConfig.plasticity(4), steps=total)
    assert max(max(widths) for widths in grown) == (28 if total > 10 else 24)
    assert grown[-1] == [24, 24]
    _, _, pruned = _run(DropInConfig.compress(0.5), steps=total)
    assert pruned[-1] == [12, 12]


def test_eight_bit_state_is_refused_at_the_first_step():
    model = tiny_mlp(hidden=2048)
    dropin = DropIn(model, DropInConfig(stop=None))
    optimizer = NeuroPlastic(model.parameters(), state_bits=8)
    model(torch.randn(5, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(TypeError, match="state_bits=32"):
        dropin.step(optimizer)
    assert dropin.step_count == 0
    dropin.unpatch()
    DropIn(model, DropInConfig(stop=None, max_fraction=0.0)).step(optimizer)  # watching alone changes no state


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reserve("model", 1), "model must be a torch.nn.Module, got str"),
        (lambda: compact(None), "model must be a torch.nn.Module, got NoneType"),
        (lambda: reserve(tiny_mlp(), 1, layers=1.5), "layers must be .*got 1.5"),
    ],
)
def test_what_is_no_model_or_no_selection_is_named(call, words):
    with pytest.raises(TypeError, match=words):
        call()
