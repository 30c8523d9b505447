"""`adapt`: a new attack learnt by new neurons, tables before and after, the adapter apart, and the way back."""

import json

import pytest
import torch
from detectors import save_detector
from transformers import AutoModelForAudioClassification
from typer.testing import CliRunner

from hf_neuroplastic import attach_neurons
from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.audio.detector_file import DetectorFile, read_detector, write_detector
from hf_neuroplastic.audio.recipe import Recipe
from hf_neuroplastic.cli import app
from hf_neuroplastic.neurons.config import DropInConfig

SIZE = {"train": 12, "dev": 4, "eval": 8}
SHORT = ("--steps", 4, "--batch-size", 4, "--neurons", 6)


def _run(*arguments):
    return CliRunner().invoke(app, ["adapt", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    write_corpus(home / "old", utterances=SIZE)
    write_corpus(home / "new", utterances=SIZE, attacks={split: ["A04"] for split in SIZE}, seed=1)
    return home


@pytest.fixture(scope="module", params=["wav2vec2", "ast"])
def detector(request, tmp_path_factory):
    folder = save_detector(request.param, tmp_path_factory.mktemp("model") / request.param)
    write_detector(folder, DetectorFile(0.5, 0.1, 0.2, {"made-synthetic": ["A01", "A02", "A03"]}))
    return folder


def _same(first, second):
    models = [AutoModelForAudioClassification.from_pretrained(folder) for folder in (first, second)]
    states = [model.state_dict() for model in models]
    assert models[0].config.intermediate_size == models[1].config.intermediate_size
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("options", [(), ("--classifier", "--method", "adamw")])
def test_a_new_attack_is_learnt_by_new_neurons_that_can_be_taken_out(options, corpora, detector, tmp_path):
    out = tmp_path / "out"
    common = (detector, "--data", corpora / "new", "--rehearse", corpora / "old", *SHORT, *options)
    result = _run(*common, "--output", out)
    assert result.exit_code == 0, result.output
    for shown in ("new: ", "rehearsed: ", "A04", "A01", "EER before", "EER after", "18 new neurons", "--undo"):
        assert shown in result.output
    content = json.loads((out / "results.json").read_text())
    assert [each["role"] for each in content["sets"]] == ["new", "rehearsed"]
    assert content["runs"][0]["counts"] == [12, 12]
    assert read_detector(out / "model").attacks == {"made-synthetic": ["A01", "A02", "A03", "A04"]}
    merged = AutoModelForAudioClassification.from_pretrained(out / "model")
    attached = AutoModelForAudioClassification.from_pretrained(detector)
    assert attach_neurons(attached, out / "adapter") == content["neurons"] == 18
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), attached.parameters(), strict=True))

    result = _run(out / "model", "--undo", out / "adapter", "--output", tmp_path / "undone")
    assert result.exit_code == 0, result.output
    assert "18 neurons are taken out" in result.output
    assert _same(tmp_path / "undone" / "model", detector)
    assert read_detector(tmp_path / "undone" / "model") == read_detector(detector)


def test_a_corpus_may_be_measured_only(corpora, detector, tmp_path):
    result = _run(detector, "--data", corpora / "new", "--measure", corpora / "old", *SHORT, "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "o" / "results.json").read_text())["runs"][0]["counts"] == [6, 6]
    assert "measured: " in result.output


def test_mistakes_are_told_in_one_line_and_leave_nothing(corpora, tmp_path):
    model = save_detector("ast", tmp_path / "model")
    cases = [
        ((model,), "--data must name"),
        ((model, "--data", tmp_path / "none"), "none"),
        ((model, "--data", corpora / "new", "--undo", tmp_path), "trains nothing"),
        ((model, "--undo", tmp_path / "model"), "is no neuron adapter"),
        ((model, "--data", corpora / "new", "--learning-rate", 0), "learning_rate"),
        ((model, "--data", corpora / "new", "--method", "sgd"), "method must be one of"),
    ]
    for arguments, words in cases:
        result = _run(*arguments, "--output", tmp_path / "o")
        assert result.exit_code == 2, result.output
        assert words in result.output
        assert not (tmp_path / "o").exists()
    result = _run(model, "--data", corpora / "new", "--output", model)
    assert "not empty" in result.output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "adamw"}, "needs method to be one with"),
        ({"dropin": DropInConfig()}, r"needs dropin to be DropInConfig.adapter\(n\)"),
        ({"weight_decay": 0.01}, "needs weight_decay to be 0"),
    ],
)
@pytest.mark.parametrize("freeze", ["base", "existing"])
def test_a_recipe_that_would_not_keep_the_base_is_refused(freeze, settings, words):
    fits = {"method": "adamw+dropin", "dropin": DropInConfig.adapter(4), "weight_decay": 0.0, "freeze": freeze}
    Recipe(**fits)
    with pytest.raises(ValueError, match=words):
        Recipe(**{**fits, **settings})
