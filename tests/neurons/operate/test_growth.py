"""`grow`: more neurons at once, the same output, and new ones that learn."""

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model
from torch import nn
from transformers import AutoModelForAudioClassification

from hf_neuroplastic import DropIn, NeuroPlastic, compact, grow
from hf_neuroplastic.neurons.sites import find_sites, inert_slots


@torch.no_grad()
def _logits(model, family):
    model.eval()
    logits = model(**tiny_batch(family)).logits
    model.train()
    return logits


def _step(model, optimizer, family):
    model(**tiny_batch(family)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("init", ["layer", "fan_in", "split"])
@pytest.mark.parametrize("family", ["wav2vec2", "ast", "llama"])
def test_grown_neurons_change_no_output_and_learn(family, init, tmp_path):
    model = tiny_model(family)
    optimizer = NeuroPlastic(model.parameters(), lr=1e-3)
    _step(model, optimizer, family)
    expected = _logits(model, family)
    grow(model, 5, init=init, optimizer=optimizer)
    torch.testing.assert_close(_logits(model, family), expected, rtol=1e-5, atol=1e-6)
    assert model.config.intermediate_size == 29
    for site in find_sites(model):
        assert not inert_slots(site)[:24].any()
        assert site.incoming[0].weight.view[24:].abs().sum(1).min() > 0
    before = [site.down.weight.detach()[:, 24:].clone() for site in find_sites(model)]
    _step(model, optimizer, family)
    for site, old in zip(find_sites(model), before, strict=True):
        assert (site.down.weight.detach()[:, 24:] != old).any(0).all()
    if family == "wav2vec2":
        model.save_pretrained(tmp_path)
        stock, info = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(_logits(stock, family), _logits(model, family))


def test_layers_that_were_not_asked_get_a_reserve_that_compact_cannot_take():
    model = tiny_model("wav2vec2")
    grow(model, 0.25, layers=[1])
    first, second = find_sites(model)
    assert (first.width, int(inert_slots(first).sum())) == (30, 6)
    assert (second.width, int(inert_slots(second).sum())) == (30, 0)
    assert compact(model) == 0


def test_split_takes_the_strongest_and_halves_them():
    model = tiny_mlp(hidden=4)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 8.0, 2.0, 4.0]]).expand(3, 4))
    rows, columns = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    grow(model, 2, init="split")
    assert torch.equal(model[0].weight[4:], rows[[1, 3]])
    assert torch.equal(model[2].weight[:, [1, 3]] + model[2].weight[:, 4:], columns[:, [1, 3]])
    assert torch.equal(model[2].weight[:, [0, 2]], columns[:, [0, 2]])


def test_convolutions_grow_and_the_seed_decides():
    def grown(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.GELU(), nn.Conv1d(8, 4, 3))
        x = torch.randn(2, 3, 12)
        expected = model(x).detach()
        grow(model, 3, seed=seed)
        torch.testing.assert_close(model(x), expected)
        return model[0].weight.detach()

    assert torch.equal(grown(1), grown(1))
    assert not torch.equal(grown(1)[8:], grown(2)[8:])


ERRORS = [
    ({"count": -1}, ValueError, ["count", "-1"]),
    ({"count": "3"}, ValueError, ["count", "'3'"]),
    ({"count": 2, "init": "best"}, ValueError, ["init", "'best'", "'layer'"]),
    ({"count": 11, "init": "split"}, ValueError, ["11", "10", "split"]),
    ({"count": 2.0, "init": "split"}, ValueError, ["2.0", "10", "split"]),
    ({"count": 2, "layers": [7]}, ValueError, ["layers", "7"]),
    ({"count": 2, "seed": -1}, ValueError, ["seed", "-1"]),
]


@pytest.mark.parametrize(("arguments", "error", "words"), ERRORS)
def test_errors_leave_the_model_as_it_was(arguments, error, words):
    model = tiny_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error) as caught:
        grow(model, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_watched_model_is_refused():
    model = tiny_mlp()
    DropIn(model)
    with pytest.raises(RuntimeError, match="unpatch"):
        grow(model, 2)


def test_a_convolution_is_not_split():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.GELU(), nn.Conv1d(8, 4, 3))
    with pytest.raises(ValueError, match="split"):
        grow(model, 2, init="split")
    assert model[0].out_channels == 8
