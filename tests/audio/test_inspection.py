"""Neurons on data: a silenced neuron is dead, an amplified one strong, and the model stays as it was."""

import copy

import pytest
import torch
from detectors import save_detector
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from hf_neuroplastic.audio import load_asvspoof2019, write_corpus
from hf_neuroplastic.audio.inspection import inspect_neurons
from hf_neuroplastic.neurons.sites import find_sites


@pytest.mark.parametrize("kind", ["wav2vec2", "ast"])
def test_dead_and_strong_neurons_are_counted(kind, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", utterances={"train": 2, "dev": 8, "eval": 2})
    rows = load_asvspoof2019(corpus, "LA", "dev")
    folder = save_detector(kind, tmp_path / "model")
    model, extractor = (
        auto.from_pretrained(folder) for auto in (AutoModelForAudioClassification, AutoFeatureExtractor)
    )
    site = find_sites(model)[1]
    with torch.no_grad():
        site.up.weight[2:5] = 0.0
        site.up.bias[2:5] = 0.0
        site.down.weight[:, 7] *= 100.0
    before = copy.deepcopy(model.state_dict())
    training = {name: module.training for name, module in model.named_modules()}
    found = inspect_neurons(model, extractor, rows, 0.4, batch_size=3)
    assert [row["site"] for row in found] == [each.name for each in find_sites(model)]
    assert [row["neurons"] for row in found] == [each.width for each in find_sites(model)]
    assert found[1]["dead"] == found[0]["dead"] + 3 == found[2]["dead"] + 3
    assert found[1]["strong"] >= 1
    assert found[1]["weak"] >= 3
    assert found == inspect_neurons(model, extractor, rows, 0.4, batch_size=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == training
    assert all(parameter.grad is None for parameter in model.parameters())
