"""The command line: results that stand by themselves, and one clear line for every mistake."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectors import save_detector
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import AutoModelForAudioClassification
from typer.testing import CliRunner

from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.audio.demo import METHODS, Scale
from hf_neuroplastic.audio.recipe import Recipe
from hf_neuroplastic.audio.watch import Watch
from hf_neuroplastic.cli import app
from hf_neuroplastic.neurons.config import DropInConfig

TINY = {"train": 16, "dev": 4, "eval": 12}


def _run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tiny_scale(monkeypatch):
    dropin = DropInConfig(interval=1, maturity=1, max_fraction=0.05, threshold=float("inf"))
    size = Scale(TINY, Recipe(steps=3, batch_size=4, learning_rate=1e-3, seconds=0.5, dropin=dropin))
    monkeypatch.setattr("hf_neuroplastic.audio.demo.scale", lambda *_: size)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", utterances=TINY)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_detector("wav2vec2", folder)
    return folder


def test_demo_leaves_results_picture_recordings_and_a_stock_detector(tmp_path, tiny_scale):
    output = tmp_path / "results"
    for _ in range(2):  # an earlier demonstration is replaced
        result = _run("demo", "--quick", "--output", output)
        assert result.exit_code == 0, result.output
    for shown in (*METHODS, "A03 (known)", "A04 (unknown)", "unknown attacks", "unknown-attack.flac"):
        assert shown in result.output
    content = json.loads((output / "results.json").read_text())
    assert [run["name"] for run in content["runs"]] == list(METHODS)
    assert {"eer", "seconds", "neurons_replaced"} <= content["runs"][0].keys()
    assert [run["neurons_replaced"] > 0 for run in content["runs"]] == [False, False, True]
    assert content["versions"]["torch"] == torch.__version__
    best = min(content["runs"], key=lambda run: run["dev_eer"])
    assert content["detector"]["method"] == best["name"]
    assert content["detector"]["figures"]["eer"] == best["eer"]
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    stock, info = AutoModelForAudioClassification.from_pretrained(output / "model", output_loading_info=True)
    assert not any(info.values())
    assert stock.config.id2label == {0: "bonafide", 1: "spoof"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    left = ["corpus", "demo.png", "model", "recordings", "results.json"]
    assert sorted(path.name for path in output.iterdir()) == left
    answers = _run("predict", output / "model", output / "recordings").stdout.splitlines()[1:]
    assert len(answers) == 3
    assert all(line.endswith(("bonafide", "spoof")) for line in answers)


def test_a_demo_that_fails_leaves_nothing(tmp_path, tiny_scale, monkeypatch):
    def fail(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr("hf_neuroplastic.audio.demo.draw_runs", fail)
    assert _run("demo", "--output", tmp_path / "results").exit_code == 1
    assert not list(tmp_path.iterdir())


def test_train_on_asvspoof_and_on_folders(tmp_path, corpus, model):
    common = ("--model", model, "--steps", 2, "--batch-size", 4, "--seconds", 0.5)
    result = _run("train", *common, "--data", corpus, "--output", tmp_path / "asv")
    assert result.exit_code == 0, result.output
    assert "EER" in result.output
    assert {"results.json", "results.png", "model"} <= {path.name for path in (tmp_path / "asv").iterdir()}

    for split, name in (("train", "training"), ("eval", "testing")):
        flac = sorted((corpus / "LA" / f"ASVspoof2019_LA_{split}" / "flac").iterdir())
        for index, path in enumerate(flac):
            target = tmp_path / "for" / name / ("real" if index % 2 else "fake")
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    result = _run("train", *common, "--data", tmp_path / "for", "--format", "folder", "--output", tmp_path / "out2")
    assert result.exit_code == 0, result.output


def test_train_with_eight_bit_state(tmp_path, corpus, model):
    common = ("--model", model, "--data", corpus, "--steps", 2, "--batch-size", 4, "--seconds", 0.5)
    result = _run("train", *common, "--method", "neuroplastic-8bit", "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("kind", "method"), [("wav2vec2", "neuroplastic+dropin"), ("ast", "adamw")])
def test_an_interrupted_training_is_resumed(tmp_path, corpus, monkeypatch, kind, method):
    save_detector(kind, model := tmp_path / "model")
    common = ("train", "--model", model, "--steps", 5, "--batch-size", 4, "--data", corpus, "--seconds", 0.4)
    common += ("--method", method)
    assert _run(*common, "--output", tmp_path / "whole").exit_code == 0

    with monkeypatch.context() as patch:
        whole_step = Watch.on_step_end

        def interrupt(self, args, state, control, **_):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            whole_step(self, args, state, control)

        patch.setattr(Watch, "on_step_end", interrupt)
        assert _run(*common, "--output", tmp_path / "cut").exit_code == 130
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    assert not (tmp_path / "cut" / "results.json").exists()
    assert "--resume" in _run(*common, "--output", tmp_path / "cut").output
    result = _run(*common, "--output", tmp_path / "cut", "--resume")
    assert result.exit_code == 0, result.output
    whole, resumed = (
        AutoModelForAudioClassification.from_pretrained(tmp_path / name / "model") for name in ("whole", "cut")
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    first, second = (json.loads((tmp_path / name / "results.json").read_text())["runs"][0] for name in ("whole", "cut"))
    losses = [[entry["loss"] for entry in run["history"] if "loss" in entry] for run in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


def test_inspect_lists_sites(model):
    result = _run("inspect", model)
    assert result.exit_code == 0, result.output
    assert "wav2vec2.encoder.layers.2." in result.output
    assert "layers.3" not in result.output


def test_inspect_on_data_tells_how_neurons_fare(trained, corpus):
    result = _run("inspect", trained / "model", "--data", corpus, "--most", 3)
    assert result.exit_code == 0, result.output
    for shown in ("dead", "weak", "strong", "on 3 recordings"):
        assert shown in result.output


def test_corpora_are_written_and_shown(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("hf_neuroplastic.audio.write_corpus", lambda output, **_: shutil.copytree(corpus, output))
    assert _run("corpus", "synthetic", tmp_path / "c").exit_code == 0
    first = next((tmp_path / "c" / "LA" / "ASVspoof2019_LA_train" / "flac").iterdir())
    shutil.copy(first, next((tmp_path / "c" / "LA" / "ASVspoof2019_LA_eval" / "flac").iterdir()))
    result = _run("corpus", "show", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert "(asvspoof2019), train: 8 bona fide and 8 spoofed files" in result.output
    assert "(asvspoof2019), eval: 6 bona fide and 6 spoofed files" in result.output
    assert _run("corpus", "show", tmp_path).exit_code == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seconds", "1", "--freeze", "last:9"), "more layers than"),
        (("--seconds", "3"), "seconds must be at most"),
        (("--seconds", "1", "--lora", "2"), "exclude"),
        (("--config", "{tmp}/layers.yaml"), "matches none of the model's sites"),
    ],
)
def test_what_the_model_cannot_do_is_told_before_audio_is_read(options, words, tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("hf_neuroplastic.cli.train.load_splits", lambda *_: pytest.fail("audio was read"))
    model = save_detector("ast", tmp_path / "ast")
    (tmp_path / "layers.yaml").write_text("dropin: {layers: [encoder.99]}\nseconds: 1\n")
    options = [option.format(tmp=tmp_path) for option in options]
    result = _run("train", "--model", model, "--data", corpus, "--output", tmp_path / "o", *options)
    assert result.exit_code == 2
    assert words in result.output


def test_a_dev_split_with_absent_files_is_no_absent_split(tmp_path, corpus, model):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    next((copy / "LA" / "ASVspoof2019_LA_dev" / "flac").iterdir()).unlink()
    common = ("train", "--model", model, "--data", copy, "--steps", 1, "--seconds", 0.3, "--method", "adamw")
    result = _run(*common, "--output", tmp_path / "o")
    assert result.exit_code == 2
    assert "1 of 4 audio files that the protocol lists are absent" in result.output
    assert not (tmp_path / "o").exists()
    (copy / "LA" / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.dev.trl.txt").unlink()
    result = _run(*common, "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output


def test_one_table_over_corpora_and_joined_training(trained, corpus, model, tmp_path):
    shutil.copytree(corpus, tmp_path / "other")
    result = _run(
        "evaluate", trained / "model", "--data", corpus, "--data", tmp_path / "other", "--output", tmp_path / "e"
    )
    assert result.exit_code == 0, result.output
    assert "over corpora" in result.output
    assert result.output.count("recordings per second") == 2
    found = [json.loads((tmp_path / "e" / name / "evaluation.json").read_text()) for name in ("corpus", "other")]
    assert found[0]["figures"] == found[1]["figures"]
    assert [each["format"] for each in found] == ["asvspoof2019"] * 2
    result = _run(
        "train", "--model", model, "--data", corpus, "--data", tmp_path / "other", *TRAIN, "--output", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "o" / "results.json").read_text())["runs"][0]["counts"] == [16, 16]


def _broken_corpus(corpus: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(corpus, copy)
    next((copy / "LA" / "ASVspoof2019_LA_train" / "flac").iterdir()).write_bytes(b"fLaC?")
    return copy


ERRORS = [
    ("no data", ["train", "--model", "{model}", "--data", "{tmp}/none", "--output", "{tmp}/o"], ["none"]),
    ("no model", ["train", "--model", "{tmp}/nothing", "--data", "{corpus}", "--output", "{tmp}/o"], ["nothing"]),
    (
        "hub model",
        ["train", "--model", "who/what", "--data", "{corpus}", "--output", "{tmp}/o"],
        ["HF_HUB_OFFLINE is set"],
    ),
    ("output taken", ["train", "--model", "{model}", "--data", "{corpus}", "--output", "{model}"], ["--output"]),
    (
        "wrong layout",
        ["train", "--model", "{model}", "--data", "{corpus}", "--format", "folder", "--output", "{tmp}/o"],
        ["not the layout folder", "folders of real and of fake files"],
    ),
    ("corrupt audio", ["train", "--model", "{model}", "--data", "{broken}", "--output", "{tmp}/o"], [".flac"]),
    (
        "bad rate",
        ["train", "--model", "{model}", "--data", "{corpus}", "--learning-rate", "0", "--output", "{tmp}/o"],
        ["learning_rate", "0"],
    ),
    (
        "absurd rate",
        ["train", "--model", "{model}", "--data", "{corpus}", "--learning-rate", "1e300", "--output", "{tmp}/o"],
        ["learning_rate", "1e+300", "at most 1"],
    ),
    (
        "bad format",
        ["train", "--model", "{model}", "--data", "{corpus}", "--format", "wav", "--output", "{tmp}/o"],
        ["asvspoof2019", "folder"],
    ),
    (
        "bad method",
        ["train", "--model", "{model}", "--data", "{corpus}", "--method", "sgd", "--output", "{tmp}/o"],
        ["neuroplastic+dropin"],
    ),
    (
        "markup in a path",
        ["train", "--model", "{model}", "--data", "{tmp}/x[/raw]y", "--output", "{tmp}/o"],
        ["x[/raw]y"],
    ),
    (
        "nothing to resume",
        ["train", "--model", "{model}", "--data", "{corpus}", "--output", "{tmp}/o", "--resume"],
        ["no recipe.yaml"],
    ),
    ("demo output taken", ["demo", "--output", "{model}"], ["--output"]),
    ("inspect nothing", ["inspect", "{tmp}/nothing"], ["nothing"]),
]


@pytest.mark.parametrize(("arguments", "words"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_mistakes_get_one_line_and_exit_code_2(arguments, words, tmp_path, corpus, model):
    broken = _broken_corpus(corpus, tmp_path) if "{broken}" in arguments else None
    before = sorted(tmp_path.rglob("*"))
    filled = [argument.format(tmp=tmp_path, corpus=corpus, model=model, broken=broken) for argument in arguments]
    result = _run(*filled)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output
    if "error:" in result.output:  # our own; the option parser draws its messages in a box
        assert len(result.output[result.output.index("error:") :].strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ImportError, TypeError, SafetensorError])
def test_what_the_user_can_put_right_is_one_line(error, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error("first line\nsecond [line]")

    monkeypatch.setattr("hf_neuroplastic.audio.demo.run_demo", fail)
    result = _run("demo", "--output", tmp_path / "o")
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == "error: first line second [line]"
    monkeypatch.setenv("HF_NEUROPLASTIC_DEBUG", "1")
    assert isinstance(_run("demo", "--output", tmp_path / "o").exception, error)


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AssertionError])
def test_anything_else_is_a_bug_and_shows_where(error, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error("a bug")

    monkeypatch.setattr("hf_neuroplastic.audio.demo.run_demo", fail)
    result = _run("demo", "--output", tmp_path / "o")
    assert result.exit_code == 1
    assert isinstance(result.exception, error)


@pytest.mark.parametrize(("method", "tagged"), [("adamw", False), ("neuroplastic", True)])
def test_the_model_card_tells_what_the_model_was_trained_with(method, tagged, tmp_path, corpus, model):
    common = ("--model", model, "--data", corpus, "--steps", 1, "--batch-size", 2, "--seconds", 0.3)
    assert _run("train", *common, "--method", method, "--output", tmp_path / "o").exit_code == 0
    card = tmp_path / "o" / "model" / "README.md"
    assert card.exists() == tagged
    if tagged:
        data = {"library_name": "transformers", "pipeline_tag": "audio-classification", "tags": ["hf-neuroplastic"]}
        assert ModelCard.load(card).data.to_dict() == data


def test_corrupt_files_may_be_skipped(tmp_path, corpus, model):
    broken = _broken_corpus(corpus, tmp_path)
    common = ("--model", model, "--steps", 1, "--batch-size", 2, "--seconds", 0.3, "--data", broken)
    result = _run("train", *common, "--on-error", "skip", "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output


def test_a_demonstration_never_deletes_other_files(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    assert _run("demo", "--output", tmp_path).exit_code == 2
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("split", ["train", "eval"])
def test_data_of_one_class_are_refused_before_training(split, tmp_path, corpus, model):
    copy = tmp_path / "one"
    shutil.copytree(corpus, copy)
    protocol = next((copy / "LA" / "ASVspoof2019_LA_cm_protocols").glob(f"*.{split}.*"))
    protocol.write_text("".join(line for line in protocol.open() if line.strip().endswith("bonafide")))
    result = _run("train", "--model", model, "--data", copy, "--steps", 1, "--output", tmp_path / "o")
    assert result.exit_code == 2
    assert "only ['bonafide']" in result.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_feature_encoder_is_frozen_unless_asked_otherwise(frozen, tmp_path, corpus, model):
    flag = ("--freeze", "features" if frozen else "nothing")
    common = ("--model", model, "--data", corpus, "--steps", 2, "--batch-size", 2, "--learning-rate", 0.01)
    assert _run("train", *common, *flag, "--output", tmp_path / "o").exit_code == 0
    before, after = (
        AutoModelForAudioClassification.from_pretrained(folder).wav2vec2.feature_extractor.conv_layers[0].conv.weight
        for folder in (model, tmp_path / "o" / "model")
    )
    assert torch.equal(before, after) == frozen


TRAIN = (
    "--steps",
    4,
    "--batch-size",
    4,
    "--seconds",
    0.4,
    "--learning-rate",
    0.001,
    "--method",
    "adamw",
    "--eval-every",
    2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus, model):
    output = tmp_path_factory.mktemp("trained") / "out"
    result = _run("train", "--model", model, "--data", corpus, *TRAIN, "--output", output)
    assert result.exit_code == 0, result.output
    return output


def test_a_run_writes_down_its_recipe_and_what_happened(trained, corpus, model, tmp_path):
    assert "dev EER" in (trained / "train.log").read_text()
    run = json.loads((trained / "results.json").read_text())["runs"][0]
    assert 0 <= run["dev_eer"] <= 1
    assert run["best_step"] in (2, 4)
    assert run["counts"] == [8, 8]
    again = _run("train", "--config", trained / "recipe.yaml", "--output", tmp_path / "again")
    assert again.exit_code == 0, again.output
    first, second = (
        AutoModelForAudioClassification.from_pretrained(p / "model") for p in (trained, tmp_path / "again")
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("option", "value"), [("--learning-rate", 0.01), ("--method", "neuroplastic"), ("--seed", 3)])
def test_a_resumption_of_something_else_is_refused(option, value, trained, corpus, model):
    common = ("train", "--model", model, "--data", corpus, *TRAIN, "--output", trained, "--resume")
    result = _run(*common, option, value)
    assert result.exit_code == 2
    assert f"{option.strip('-').replace('-', '_')} was" in result.output


def test_a_finished_run_is_left_as_it_is(trained, corpus, model):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = _run("train", "--model", model, "--data", corpus, *TRAIN, "--output", trained, "--resume")
    assert result.exit_code == 0
    assert "this run is finished" in result.output
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_predict_gives_the_scores_of_evaluate_and_labels_at_its_threshold(trained, corpus, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    output = tmp_path / "evaluation"
    result = _run("evaluate", tmp_path / "model", "--data", corpus, "--output", output)
    assert result.exit_code == 0, result.output
    assert "A01" in result.output
    with (output / "scores.csv").open() as file:
        scored = {row["file"]: row["score"] for row in csv.DictReader(file)}
    submitted = [line.split() for line in (output / "submission.txt").read_text().splitlines()]
    assert {name: score for name, _, _, score in submitted} == scored
    threshold = json.loads((output / "evaluation.json").read_text())["threshold"]
    empty = tmp_path / "leer \u00fc.wav"
    empty.touch()
    flac = corpus / "LA" / "ASVspoof2019_LA_eval" / "flac"
    result = _run("predict", tmp_path / "model", flac, empty, "--format", "jsonl", "--output", tmp_path / "answers")
    assert result.exit_code == 1
    assert "leer \u00fc.wav" in result.output
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert {Path(each["file"]).stem: repr(each["score"]) for each in answers} == scored
    assert all(each["label"] == ("bonafide" if each["llr"] >= threshold else "spoof") for each in answers)


def test_a_score_does_not_depend_on_the_batch(trained, corpus):
    flac = corpus / "LA" / "ASVspoof2019_LA_eval" / "flac"
    outputs = [_run("predict", trained / "model", flac, "--batch-size", size).stdout for size in (1, 5)]
    for one, five in zip(*(output.splitlines()[1:] for output in outputs), strict=True):
        assert one.split(",")[0] == five.split(",")[0]
        assert float(one.split(",")[1]) == pytest.approx(float(five.split(",")[1]), rel=1e-4, abs=1e-5)


def test_help_and_version_need_no_model_library():
    code = (
        "import sys; sys.argv = ['hf-neuroplastic', *sys.argv[1:]]\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from hf_neuroplastic.__main__ import main; main()"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "False"
