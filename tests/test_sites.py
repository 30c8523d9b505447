import pytest
import torch
from tiny import FAMILIES, tiny_mlp, tiny_model
from torch import nn

from hf_neuroplastic.sites import find_sites, select_sites


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


ERRORS = [
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


@pytest.mark.parametrize(("build", "layers", "error", "words"), ERRORS)  # fmt: skip
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
