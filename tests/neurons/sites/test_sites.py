import importlib
import json
import re
from types import SimpleNamespace

import pytest
import torch
from kinds import KINDS, Recurrent
from tiny import FAMILIES, GATED, tiny_mlp, tiny_model
from torch import nn

from hf_neuroplastic import DropInConfig, reserve
from hf_neuroplastic.neurons.sites import ARCHITECTURES, find_sites, select_sites

(GATED_ROW,) = [row for row in ARCHITECTURES if row.gate]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_feed_forward_layer_is_found(family):
    model = tiny_model(family)
    sites = find_sites(model)
    assert len(sites) == model.config.num_hidden_layers
    for site in sites:
        assert site.width == model.config.intermediate_size
        assert dict(model.named_modules())[site.name] is not None
        assert site.up.weight.shape == site.down.weight.shape[::-1]


def test_a_sequential_may_hold_several_sites_and_dropout():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2), nn.Softmax(-1)
    )
    assert [(site.name, site.width) for site in find_sites(model)] == [("0", 8), ("3", 6)]
    wrapped = nn.ModuleDict({"head": model})
    assert [site.name for site in find_sites(wrapped)] == ["head.0", "head.3"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1]),
        (0, [0]),
        (-1, [1]),
        ([1, 0, 1], [0, 1]),
        ("wav2vec2.encoder.layers.1.feed_forward", [1]),
        (r"layers\.0\.", [0]),
        (["layers.0", 1], [0, 1]),
    ],
)
def test_selection_by_index_name_and_pattern(layers, expected):
    model = tiny_model("wav2vec2")
    everything = [site.name for site in find_sites(model)]
    assert [site.name for site in select_sites(model, layers)] == [everything[index] for index in expected]


def test_frozen_layers_are_left_out_or_refused_when_asked_for():
    model = tiny_model("wav2vec2")
    model.wav2vec2.encoder.layers[0].requires_grad_(False)
    assert len(select_sites(model)) == 1
    with pytest.raises(ValueError, match=r"layers selects frozen.*layers\.0\.feed_forward.*unfreeze"):
        select_sites(model, 0)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all 2 .* frozen.*unfreeze"):
        select_sites(model)


def _tied(linear, attribute):
    model = tiny_model("ast")
    first, second = (getattr(layer.mlp, linear) for layer in model.audio_spectrogram_transformer.layers)
    setattr(second, attribute, getattr(first, attribute))
    return model


def _shared_activation():
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 3), act, nn.Linear(3, 1))


def _adapted():
    model = tiny_model("ast")
    mlp = model.audio_spectrogram_transformer.layers[0].mlp
    mlp.fc1 = nn.Sequential(mlp.fc1)
    return model


def _recomputed():
    model = tiny_mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def _sharded():
    model = tiny_mlp()
    model[0].weight = nn.Parameter(torch.zeros(0))  # what ZeRO-3 leaves of a weight
    return model


def _marked(**marks):
    """As engines mark the weights that they keep elsewhere."""
    model = tiny_mlp()
    vars(model[0].weight).update(marks)
    return model


ERRORS = [
    (lambda: _marked(ds_id=0), None, TypeError, ["'0'", "sharded by DeepSpeed's ZeRO-3", "DDP"]),
    (lambda: _marked(_hp_mapping=None), None, TypeError, ["'0'", "copy of what DeepSpeed's ZeRO trains", "DDP"]),
    (lambda: _marked(_fsdp_flattened=True), None, TypeError, ["'0'", "vector of FSDP1", "DDP"]),
    (lambda: _tied("fc2", "bias"), None, ValueError, ["shares a weight", "layers.1.mlp.fc2.bias"]),
    (_recomputed, None, TypeError, ["'0'", "torch.nn.Linear"]),
    (_sharded, None, TypeError, ["'0'", "sharded", "ZeRO-3", "DDP"]),
    (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Dropout(0.1, inplace=True), nn.Linear(3, 1)),
        None,
        ValueError,
        ["inplace=False"],
    ),
    (lambda: nn.Linear(2, 2), None, ValueError, ["Linear", "no feed-forward layer", "wav2vec2", "AST"]),
    (lambda: tiny_model("wav2vec2"), 2, ValueError, ["index 2", "layers.0.feed_forward", "layers.1.feed_forward"]),
    (lambda: tiny_model("wav2vec2"), "decoder", ValueError, ["'decoder'", "matches none", "layers.1.feed_forward"]),
    (lambda: tiny_model("wav2vec2"), "layers[", ValueError, ["'layers['", "regular expression"]),
    (lambda: _tied("fc1", "weight"), None, ValueError, ["shares a weight", "layers.1.mlp.fc1.weight", "untie"]),
    (_shared_activation, None, ValueError, ["activation", "own instance"]),
    (_adapted, None, TypeError, ["up projection", "layers.0.mlp", "torch.nn.Linear", "Sequential"]),
]


@pytest.mark.parametrize(("build", "layers", "error", "words"), ERRORS)
def test_errors_list_what_there_is(build, layers, error, words):
    with pytest.raises(error) as caught:
        select_sites(build(), layers)
    for word in words:
        assert word in str(caught.value)


def test_middle_linear_may_be_down_of_one_site_and_up_of_the_next():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    first, second = find_sites(model)
    assert first.down is second.up
    assert isinstance(first.down.weight, torch.nn.Parameter)
    assert tiny_mlp()[0].out_features == find_sites(tiny_mlp())[0].width


@pytest.mark.parametrize("family", GATED)
def test_gated_layers_are_found_and_watched_before_their_last_projection(family):
    model = tiny_model(family)
    sites = find_sites(model)
    assert len(sites) == 2
    for site in sites:
        assert site.width == 24
        assert (site.watched, site.watch, site.neuron_dim) == (site.down, "input", -1)
        assert site.configs == (model.config,)


@pytest.mark.parametrize(
    "family",
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "cohere", "granite", "helium"],
)
def test_what_the_table_calls_gated_is(family):
    """The class computes down(activation(gate(x)) * up(x)) and no more."""
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (name,) = [name for name in vars(modeling) if re.fullmatch(GATED_ROW.container, name)]
    settings = {"hidden_size": 8, "intermediate_size": 12, "mlp_bias": False, "attention_bias": False}
    config = SimpleNamespace(**settings, hidden_act="silu", hidden_activation="silu")
    mlp, x = getattr(modeling, name)(config), torch.randn(3, 8)
    (site,) = find_sites(mlp)
    assert torch.equal(mlp(x), site.down(site.activation(site.gate(x)) * site.up(x)))


def test_convolutions_are_found_with_their_normalisation():
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout1d(0.1),
        nn.Conv1d(6, 5, 3),
        nn.GELU(),
        nn.Conv1d(5, 4, 1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 4, 1),
    )
    first, second = find_sites(model)
    assert (first.name, first.width, first.norm, first.next_norm) == ("0", 6, model[1], None)
    assert (second.name, second.width, second.norm, second.next_norm) == ("4", 5, None, model[7])
    assert (first.watched, first.watch, first.neuron_dim) == (model[2], "output", 1)
    assert second.follows
    assert not first.follows
    reserve(model, 2, layers=[0])
    assert [model[0].out_channels, model[1].num_features, model[4].in_channels, model[4].out_channels] == [8, 8, 8, 5]


def test_convolutions_that_cannot_follow_each_other_are_no_site():
    conv = nn.Conv1d(2, 6, 3)
    assert not find_sites(nn.Sequential(conv, nn.ReLU(), nn.Conv1d(4, 2, 1)))
    assert not find_sites(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 2, 1)))
    assert not find_sites(nn.Sequential(conv, nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(6, 2, 1)))
    assert not find_sites(nn.Sequential(conv, nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv1d(6, 2, 1)))


@pytest.mark.parametrize(("layer", "per_block"), [("basic", ["layer.0"]), ("bottleneck", ["layer.0", "layer.1"])])
def test_the_blocks_of_a_resnet_hold_sites(layer, per_block):
    model = KINDS[f"resnet_{layer}"].build()
    expected = [f"resnet.encoder.stages.{stage}.layers.0.{name}" for stage in (0, 1) for name in per_block]
    assert [site.name for site in find_sites(model)] == expected


def test_the_named_grus_survive_json():
    config = DropInConfig(recurrent={"encoder.gru": "head"})
    assert DropInConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_gru_is_a_site_where_the_user_says_so():
    model = Recurrent()
    (site,) = select_sites(model, None, {"gru": "head"})
    assert (site.name, site.width, site.inputs) == ("gru", 7, 7)
    assert (site.watched, site.watch, site.neuron_dim) == (model.gru, "output", -1)
    assert {id(weight) for weight in site.weights} == {
        id(weight) for weight in (model.gru.weight_ih_l1, model.gru.weight_hh_l1, model.head.weight)
    }
    model.gru.weight_hh_l1.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        select_sites(model, "gru", {"gru": "head"})
