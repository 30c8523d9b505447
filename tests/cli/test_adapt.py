"""`adapt`: a new attack learnt by new neurons, tables before and after, the adapter apart, and the way back."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from detectors import save_detector
from transformers import AutoModelForAudioClassification
from typer.testing import CliRunner

from hf_neuroplastic import attach_neurons
from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.audio.detector import load_detector
from hf_neuroplastic.audio.detector_file import DetectorFile, read_detector, write_detector
from hf_neuroplastic.audio.recipe import Recipe
from hf_neuroplastic.audio.watch import Watch
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


def _same(first, second, widths=True):
    models = [AutoModelForAudioClassification.from_pretrained(folder) for folder in (first, second)]
    states = [model.state_dict() for model in models]
    assert not widths or models[0].config.intermediate_size == models[1].config.intermediate_size
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_running_statistics_belong_to_the_adapter(corpora, tmp_path):
    detector = save_detector("conformer", tmp_path / "conformer")
    write_detector(detector, DetectorFile(0.5))
    out = tmp_path / "out"
    result = _run(detector, "--data", corpora / "new", *SHORT, "--output", out)
    assert result.exit_code == 0, result.output
    assert not _same(out / "model", detector, widths=False)
    assert _run(out / "model", "--undo", out / "adapter", "--output", tmp_path / "undone").exit_code == 0
    assert _same(tmp_path / "undone" / "model", detector)


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


def test_an_interrupted_run_is_resumed(corpora, detector, tmp_path, monkeypatch):
    common = (detector, "--data", corpora / "new", *SHORT, "--eval-every", 1)
    assert _run(*common, "--output", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        whole_step = Watch.on_step_end

        def interrupt(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            whole_step(self, args, state, control)

        patch.setattr(Watch, "on_step_end", interrupt)
        assert _run(*common, "--output", tmp_path / "cut").exit_code == 130
    assert not (tmp_path / "cut" / "adapter").exists()
    result = _run(*common, "--output", tmp_path / "cut", "--resume", "--neurons", 9)
    assert "dropin was" in result.output
    result = _run(*common, "--output", tmp_path / "cut", "--resume")
    assert result.exit_code == 0, result.output
    first, second = (tmp_path / name / "adapter" / "neuron_adapter.safetensors" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()
    assert "this run is finished" in _run(*common, "--output", tmp_path / "cut", "--resume").output


def test_the_dev_of_the_new_corpus_alone_may_choose(corpora, tmp_path):
    """Else the weights that change least of what is known would be kept."""
    detector = save_detector("ast", tmp_path / "ast")
    write_detector(detector, DetectorFile(0.5, 0.0, 0.2))
    new = write_corpus(tmp_path / "new", utterances=SIZE, attacks={split: ["A04"] for split in SIZE}, seed=1)
    for protocol in new.glob("**/*.dev.*"):
        protocol.unlink()
    result = _run(detector, "--data", new, "--rehearse", corpora / "old", *SHORT, "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert "the last weights are kept" in result.output
    (run,) = json.loads((tmp_path / "o" / "results.json").read_text())["runs"]
    assert run["dev_eer"] is None
    assert read_detector(tmp_path / "o" / "model").threshold is None


def test_of_adapters_on_top_of_each_other_the_last_goes_first(corpora, tmp_path):
    place = save_detector("ast", tmp_path / "ast")
    write_detector(place, DetectorFile(0.5))
    for name, neurons in (("first", 6), ("second", 6)):
        result = _run(place, "--data", corpora / "new", "--steps", 4, "--neurons", neurons, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
        place = tmp_path / name / "model"
    result = _run(place, "--undo", tmp_path / "first" / "adapter", "--output", tmp_path / "undone")
    assert result.exit_code == 2
    assert "the last goes first" in result.output
    assert not (tmp_path / "undone").exists()
    for name in ("second", "first"):
        result = _run(place, "--undo", tmp_path / name / "adapter", "--output", tmp_path / f"without-{name}")
        assert result.exit_code == 0, result.output
        place = tmp_path / f"without-{name}" / "model"
    assert _same(place, tmp_path / "ast")


def test_a_base_that_changes_when_it_is_loaded_is_told_of(corpora, tmp_path):
    detector = save_detector("wav2vec2", tmp_path / "half")
    AutoModelForAudioClassification.from_pretrained(detector, dtype=torch.bfloat16).save_pretrained(detector)
    write_detector(detector, DetectorFile(0.5))
    result = _run(detector, "--data", corpora / "new", *SHORT, "--output", tmp_path / "o")
    assert "as load_detector brings it" in result.output
    model, _ = load_detector(str(detector))
    assert attach_neurons(model, tmp_path / "o" / "adapter") == 18
    config = json.loads((detector / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (detector / "config.json").write_text(json.dumps(config))
    result = _run(detector, "--data", corpora / "new", *SHORT, "--output", tmp_path / "p")
    assert result.exit_code == 2
    assert "would never learn" in result.output


def test_two_processes_adapt_alike(corpora, tmp_path):
    detector = save_detector("ast", tmp_path / "ast")
    write_detector(detector, DetectorFile(0.5))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--data", corpora / "new", *SHORT, "--output", tmp_path / "o"]
    command = [*launch, "-m", "hf_neuroplastic", "adapt", detector, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("18 new neurons") == 1
    model = AutoModelForAudioClassification.from_pretrained(detector)
    assert attach_neurons(model, tmp_path / "o" / "adapter") == 18


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
        ((model, "--undo", tmp_path / "model", "--resume", "--steps", 3), "leave out --resume, --steps"),
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
