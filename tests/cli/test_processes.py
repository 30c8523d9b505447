"""train on two processes does what one does with batches of twice the size, and one of the two speaks and writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectors import save_detector
from torch import nn
from transformers import AutoModelForAudioClassification

from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.audio.recipe import Recipe
from hf_neuroplastic.audio.trainer import training_arguments
from hf_neuroplastic.audio.training import require_trainable


def train(output, *options, processes=1):
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launch, "-m", "hf_neuroplastic", "train", "--output", str(output), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", utterances={"train": 16, "dev": 8, "eval": 8})
    model = save_detector("ast", tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(
        "dropin: {interval: 2, start: 1, maturity: 1, max_fraction: 0.1, threshold: .inf}\nsteps: 6\nseconds: 0.4\n"
    )
    common = (
        "--config",
        tmp_path / "recipe.yaml",
        "--model",
        model,
        "--data",
        corpus,
        "--eval-every",
        3,
    )
    common += ("--learning-rate", 1e-3, "--average", 2)
    train(tmp_path / "one", *common, "--batch-size", 8)
    shown = train(tmp_path / "two", *common, "--batch-size", 4, processes=2)
    assert shown.count("step 6 of 6: loss") == 1
    assert shown.count("fine-tuned") == 1
    runs = [json.loads((tmp_path / name / "results.json").read_text())["runs"][0] for name in ("one", "two")]
    assert runs[0]["neurons_replaced"] == runs[1]["neurons_replaced"]
    assert runs[0]["neurons_replaced"] > 0
    for name in ("loss", "eval_eer"):
        one, two = ([entry[name] for entry in run["history"] if name in entry] for run in runs)
        assert two == pytest.approx(one, rel=1e-3)
    one, two = (AutoModelForAudioClassification.from_pretrained(tmp_path / name / "model") for name in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "engine"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")])
def test_engines_that_split_weights_are_refused_before_audio_is_read(name, engine, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=rf"data-parallel \(DDP\).*{engine}.*torchrun"):
        require_trainable(nn.Linear(1, 1), Recipe())
    with pytest.raises(ValueError, match=engine):
        training_arguments(Recipe(), Path(), save=False, evaluates=False)
