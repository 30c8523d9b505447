"""The examples do what they say."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_plain_loop_replaces_the_dead():
    train = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["train"]
    accuracy, dead = train(with_dropin=False, steps=400)
    revived_accuracy, revived_dead = train(with_dropin=True, steps=400)
    assert dead == 0.5
    assert revived_dead < 0.1
    assert revived_accuracy > accuracy


@pytest.mark.parametrize("kind", ["wav2vec2", "ast"])
def test_trainer_quickstart(kind, tmp_path, monkeypatch, capsys):
    from detectors import save_detector

    from hf_neuroplastic.audio import write_corpus

    corpus = write_corpus(tmp_path / "corpus", utterances={"train": 8, "dev": 4, "eval": 8})
    save_detector(kind, tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(corpus), "--output", str(tmp_path / "out"), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["trainer_quickstart.py", *arguments])
    runpy.run_path(str(EXAMPLES / "trainer_quickstart.py"), run_name="__main__")
    assert "EER" in capsys.readouterr().out
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (checkpoint / "neuroplastic.json").is_file()
    monkeypatch.setattr(sys, "argv", ["trainer_quickstart.py", *arguments[:-1], "3", "--resume", str(checkpoint)])
    runpy.run_path(str(EXAMPLES / "trainer_quickstart.py"), run_name="__main__")
    assert (tmp_path / "out" / "checkpoint-3").is_dir()


def test_detect_spoofed_speech(tmp_path, monkeypatch, capsys):
    from detectors import save_detector

    from hf_neuroplastic.audio import write_corpus
    from hf_neuroplastic.audio.synthetic.corpus import write_recordings

    corpus = write_corpus(tmp_path / "corpus", utterances={"train": 8, "dev": 4, "eval": 8})
    recordings = write_recordings(tmp_path / "recordings")
    save_detector("wav2vec2", tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(corpus), str(recordings), "--output", str(tmp_path / "detector")]
    monkeypatch.setattr(sys, "argv", ["detect_spoofed_speech.py", *arguments, "--steps", "2", "--seconds", "0.5"])
    runpy.run_path(str(EXAMPLES / "detect_spoofed_speech.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "on eval" in printed
    assert all(f"{name}.flac: " in printed for name in ("bonafide", "known-attack", "unknown-attack"))
    assert {"detector.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in (tmp_path / "detector").iterdir()
    }


def test_grow_and_compress(tmp_path, monkeypatch, capsys):
    arguments = ["--output", str(tmp_path), "--steps", "6", "--neurons", "8", "--share", "0.5"]
    monkeypatch.setattr(sys, "argv", ["grow_and_compress.py", *arguments])
    runpy.run_path(str(EXAMPLES / "grow_and_compress.py"), run_name="__main__")
    lines = [line.split(" neurons a layer")[0] for line in capsys.readouterr().out.splitlines() if "a layer" in line]
    assert lines == ["grown: 72", "pruned: 72", "compacted by 72 slots: 36"]


def test_continual_learning(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    arguments = ["--seeds", "1", "--tasks", "2", "--epochs", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["continual_learning.py", *arguments])
    example = runpy.run_path(str(EXAMPLES / "continual_learning.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(method in printed for method in example["METHODS"])
    assert {path.name for path in output.iterdir()} == {"results.json", "continual_learning.png"}
    rank = example["effective_rank"]
    assert rank(torch.eye(7)) == pytest.approx(7.0, rel=1e-5)
    assert rank(torch.ones(7, 3)) == pytest.approx(1.0, rel=1e-3)


def test_eight_bit_state(monkeypatch, capsys):
    from hf_neuroplastic.audio.demo import Scale
    from hf_neuroplastic.audio.recipe import Recipe

    size = Scale({"train": 8, "dev": 4, "eval": 8}, Recipe(steps=1, batch_size=2, seconds=0.5))
    monkeypatch.setattr("hf_neuroplastic.audio.demo.scale", lambda *_: size)
    monkeypatch.setattr(sys, "argv", ["eight_bit_state.py", "--seeds", "1"])
    runpy.run_path(str(EXAMPLES / "studies" / "eight_bit_state.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "EER" in line]
    assert [line.split()[2] for line in lines] == ["neuroplastic", "neuroplastic-8bit"]


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_loop(processes):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launch, str(EXAMPLES / "accelerate_loop.py"), "--steps", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{processes} processes, 100 steps: accuracy" in done.stdout
    assert "1 different networks" in done.stdout


def test_multi_gpu(tmp_path):
    """Every command, in small; on the CPU accelerate takes DDP for FSDP2."""
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "4", "OUTPUT": str(tmp_path / "out")}
    command = ["bash", str(EXAMPLES / "multi_gpu.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 processes, 4 steps: accuracy") == 3
    assert done.stdout.count("1 different networks") == 3
    assert (tmp_path / "out" / "model" / "detector.json").is_file()


def test_adapt_to_a_new_attack(tmp_path, monkeypatch, capsys):
    from detectors import save_detector

    from hf_neuroplastic.audio import write_corpus

    size = {"train": 8, "dev": 4, "eval": 8}
    old = write_corpus(tmp_path / "old", utterances=size)
    new = write_corpus(tmp_path / "new", utterances=size, attacks={split: ["A04"] for split in size}, seed=1)
    save_detector("ast", tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(new), "--old", str(old), "--output", str(tmp_path / "adapter")]
    arguments += ["--steps", "4", "--seconds", "0.5", "--neurons", "8"]
    monkeypatch.setattr(sys, "argv", ["adapt_to_a_new_attack.py", *arguments])
    runpy.run_path(str(EXAMPLES / "adapt_to_a_new_attack.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "EER" in line]
    assert [line[0] for line in lines] == ["new:", "old:"]
    assert all(line[2] == line[-5] for line in lines)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "neuron_adapter.json",
        "neuron_adapter.safetensors",
    }


def test_adapter_memory(monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.setattr(sys, "argv", ["adapter_memory.py", "--small", "--neurons", "4"])
    example = runpy.run_path(str(EXAMPLES / "studies" / "adapter_memory.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-len(example["ARMS"]) :]]
    assert [line[-4] for line in lines[-2:]] == [f"{2 * 4 * (64 + 1 + 64):,}"] * 2


def test_pairs_earn_their_place_in_the_study_of_churn():
    stream = runpy.run_path(str(EXAMPLES / "studies" / "churn.py"))["stream"]
    silent, pair = (stream(method, 0, True, None) for method in ("silent", "pair"))
    assert pair["again"] < 0.6 * silent["again"]
    assert pair["early"] < 0.6 * silent["early"]
    assert pair["weak"] < silent["weak"]


@pytest.mark.parametrize("name", ["optimizers", "compression", "permuted"])
def test_studies_on_digits(name, tmp_path, monkeypatch, capsys):
    output, picture = tmp_path / "lines.jsonl", tmp_path / "picture.png"
    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output", str(output), "--picture", str(picture)])
    runpy.run_path(str(EXAMPLES / "studies" / f"{name}.py"), run_name="__main__")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    compared = [row for row in rows if "difference" in row]
    assert all(0 <= row["test"] <= 100 for row in rows if "test" in row)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{len(compared)} comparisons: ")
    assert picture.is_file()
    if name == "compression":
        arms = {(row["method"], row["share"]): row["parameters"] for row in rows if "parameters" in row}
        for share in (0.75, 0.5, 0.25):
            assert arms["pruned", share] == arms["random", share] == arms["narrow", share] < arms["wide", 1.0]


def test_what_studies_share(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    shared = runpy.run_path(str(EXAMPLES / "studies" / "shared.py"))
    whole, validation, test = shared["split"](0)
    part, same_validation, _ = shared["split"](0, share=0.25, noise=0.3)
    assert [len(each[0]) for each in (whole, part, validation, test)] == [1077, 269, 270, 450]
    assert torch.equal(part[0], whole[0][:269])
    assert torch.equal(validation[0], same_validation[0])
    assert 0.2 < (part[1] != whole[1][:269]).float().mean() < 0.35  # a tenth of those drawn are right by chance
    rows = [{"arm": "a", "rate": rate, "validation": 10 * rate * seed} for rate in (1, 2) for seed in (0, 1)]
    assert shared["best_rate"](rows, lambda row: row["arm"]) == rows[2:]
    found = shared["paired"]({0: 3.0, 1: 2.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert found["difference"] == pytest.approx(2.0)
    assert found["high"] - 2.0 == pytest.approx(
        4.30265 / 3**0.5, rel=1e-4
    )  # Student's t, two degrees of freedom, deviation 1
    assert 2.0 - found["low"] == pytest.approx(found["high"] - 2.0)
