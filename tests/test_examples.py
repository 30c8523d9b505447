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


def run_study(name, monkeypatch, *arguments):
    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / "studies" / f"{name}.py"), run_name="__main__")


FEWER = {
    "speech": ["--methods", "adamw,neuroplastic,alignment", "--shares", ".25,1"],
    "audio_tasks": ["--methods", "adamw,adamw+random,neuroplastic+dropin,fresh", "--redrawn", "--change", "gradual"],
}


def require_equal_sizes(rows):
    arms = {(row["method"], row["share"]): row["parameters"] for row in rows}
    for share in {share for method, share in arms} - {1.0}:
        assert arms["pruned", share] == arms["random", share] == arms["narrow", share] < arms["wide", 1.0]


@pytest.mark.parametrize("name", ["optimizers", "compression", "permuted", "speech", "audio_tasks"])
def test_studies_in_small(name, tmp_path, monkeypatch, capsys):
    output, picture = tmp_path / "lines.jsonl", tmp_path / "picture.png"
    arguments = ["--quick", "--output", output, "--picture", picture, *FEWER.get(name, [])]
    run_study(name, monkeypatch, *arguments)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    printed = capsys.readouterr().out.splitlines()
    compared = [line for line in printed if "[" in line and not line.startswith(("{", "mean over all rates"))]
    assert all(0 <= row["test"] <= 100 for row in rows if "test" in row)
    assert printed[-1].startswith(f"{len(compared)} comparisons: ")
    assert picture.is_file()
    if name == "compression":
        require_equal_sizes(rows)
    if name != "permuted":  # begun again, nothing is left to run
        run_study(name, monkeypatch, *arguments)
        assert len(output.read_text().splitlines()) == len(rows)
        assert capsys.readouterr().out.splitlines()[-len(compared) :] == printed[-len(compared) :]


def test_the_study_of_compression_on_recordings(tmp_path, monkeypatch, capsys):
    from hf_neuroplastic.audio import write_corpus

    corpus = write_corpus(tmp_path / "corpus", utterances={"train": 64, "dev": 16, "eval": 16})
    arguments = ["--quick", "--data", corpus, "--shares", "0.25", "--output", tmp_path / "lines.jsonl"]
    run_study("compression", monkeypatch, *arguments)
    rows = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    require_equal_sizes(rows)
    assert {row["method"] for row in rows} == {"wide", "pruned", "random", "narrow"}
    assert all(0 <= row["test"] <= 100 for row in rows)
    with pytest.raises(SystemExit):
        run_study("compression", monkeypatch, "--data", tmp_path / "nowhere")
    assert "nowhere" in capsys.readouterr().err


def test_the_study_of_speech_on_files_without_speakers(tmp_path, monkeypatch, capsys):
    import numpy as np
    import soundfile

    for kind in ("real", "fake"):
        (tmp_path / kind).mkdir()
        for number in range(20):
            noise = np.random.default_rng((number, kind == "real")).normal(0, 0.1, 16000 + number)
            soundfile.write(tmp_path / kind / f"{kind}{number}.wav", noise, 16000)
    arguments = ["--quick", "--data", tmp_path, "--methods", "sgd,neuroplastic", "--shares", "1", "--noises", "0"]
    run_study("speech", monkeypatch, *arguments, "--model", "wav2vec2", "--start", "none")
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 comparisons: ")
    for wrong, told in (
        ([], "take --start none"),
        (["--attacks", "A99"], "the corpus has no attacks A99"),
        (["--methods", "lion"], "--methods must be of adamw, sgd, neuroplastic"),
        (["--methods", "adamw"], "--methods must hold neuroplastic"),
        (["--shares", "0"], "--shares must be numbers"),
        (["--model", "nowhere/model"], "nowhere/model is no folder"),
        (["--seconds", "3"], "seconds must be at most"),
        (["--most", "4"], "needs two of each"),
    ):
        with pytest.raises(SystemExit):
            run_study("speech", monkeypatch, *arguments, *wrong)
        assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("seed", range(5))
def test_the_study_of_speech_holds_out_speakers(seed, monkeypatch):
    import numpy as np

    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    study = runpy.run_path(str(EXAMPLES / "studies" / "speech.py"))
    draw = np.random.default_rng(seed)
    kinds = draw.choice(["bona fide", "conversion", "voices", "one voice"], 600)
    people = np.where(kinds == "voices", "v", "p")  # a conversion has the speaker of what was converted
    speakers = np.where(kinds == "one voice", "joe", np.char.add(people, draw.integers(0, 12, 600).astype(str)))
    names = np.array([f"n{number}" for number in range(600)])
    data = torch.zeros(600, 1), torch.tensor((kinds != "bona fide").astype(int))
    recordings = study["Recordings"](data, kinds, names, speakers)
    found = {each: study["parts"](recordings, each) for each in (seed, seed + 1)}
    parts = found[seed]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(600))
    assert (found[seed + 1]["test"] == parts["test"]).all()
    assert set(found[seed + 1]["validation"]) != set(parts["validation"])
    spoken = {part: set(speakers[rows]) - {"joe"} for part, rows in parts.items()}
    assert not spoken["train"] & spoken["test"]
    assert not spoken["train"] & spoken["validation"]
    assert not spoken["validation"] & spoken["test"]
    for kind in set(kinds):
        shares = [
            (kinds[parts[part]] == kind).sum() / (kinds == kind).sum() for part in ("train", "validation", "test")
        ]
        assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.03 if kind == "one voice" else 0.15)
    whole, part = (study["drawn"](data, parts["train"], share, 0.0, seed)[1] for share in (1.0, 0.25))
    assert part.bincount().tolist() == [round(0.25 * count) for count in whole.bincount().tolist()]


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
    same = shared["noisy"](torch.arange(10**4), 0.0, 10**9, torch.Generator().manual_seed(0))
    drawn = shared["noisy"](torch.arange(10**4), 0.3, 10**9, torch.Generator().manual_seed(0))
    assert torch.equal(same, torch.arange(10**4))
    assert (drawn != same).float().mean() == pytest.approx(0.3, abs=0.02)


def test_studies_compare_at_the_best_rate(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    shared = runpy.run_path(str(EXAMPLES / "studies" / "shared.py"))
    compare, at_equal_rates = shared["compare"], shared["at_equal_rates"]
    rows = [
        {"method": method, "share": share, "noise": 0.0, "rate": rate, "seed": seed, "milliseconds": 1.0, "bytes": 8.0}
        | {"validation": rate, "test": 10.0 * rate + seed + (method == "adamw") * (1 + share * seed)}
        for method in ("adamw", "neuroplastic")
        for share in (0.5, 1.0)
        for rate in (1, 2)
        for seed in (0, 1, 2)
    ]
    for best, rate in ((min, 1), (max, 2)):
        found = {(row["condition"].split("%")[0], row["method"]): row for row in compare(rows, best)}
        assert [found[share, "adamw"]["rate"] for share in ("50", "100")] == [rate, rate]
        assert found["100", "neuroplastic"]["test"] == pytest.approx(10 * rate + 1)
        assert [found[share, "adamw"]["difference"] for share in ("50", "100", "all")] == pytest.approx(
            [1.5, 2.0, 1.75]
        )
        assert "difference" not in found["all", "neuroplastic"]
    others = [{**row, "method": "sgd", "rate": 10 * row["rate"]} for row in rows if row["method"] == "adamw"]
    (equal,) = at_equal_rates([*rows, *others])
    assert (equal["method"], equal["difference"]) == ("adamw", pytest.approx(1.75))


def test_alignment_of_momentum_and_gradient(monkeypatch):
    from hf_neuroplastic import NeuroPlastic

    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    shared = runpy.run_path(str(EXAMPLES / "studies" / "shared.py"))

    def trained(temperature):
        model = shared["perceptron"](16, seed=0)
        groups = [{"params": [each]} for each in model.parameters()] if temperature else model.parameters()
        optimizer = NeuroPlastic(groups, lr=1e-2)
        if temperature:
            shared["aligned"](optimizer, temperature)
        shared["train"](model, shared["split"](0, share=0.1)[0], 3, 0, optimizer)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-2}
        return torch.cat([each.detach().flatten() for each in model.parameters()])

    assert torch.equal(trained(float("inf")), trained(None))
    assert not torch.equal(trained(0.2), trained(None))
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = shared["aligned"](torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, eps=0.0), 0.2, decay=0.0)
    for sign, step in ((1, -1.0), (1, -2 / (1 + 2.718281828459045**-5))):  # then a gradient along its momentum
        before, weight.grad = weight.detach().clone(), sign * torch.ones(3)
        optimizer.step()
        assert weight.detach() - before == pytest.approx(torch.full((3,), step), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_tasks_of_the_study_of_tasks(seed, monkeypatch):
    import numpy as np

    monkeypatch.syspath_prepend(EXAMPLES / "studies")
    study = runpy.run_path(str(EXAMPLES / "studies" / "audio_tasks.py"))
    draw = np.random.default_rng(seed)
    kinds = draw.choice(["bona fide", "A01", "A02"], 300)
    speakers = draw.choice(list("abcdefg"), 300)
    labels = torch.tensor((kinds != "bona fide").astype(int))
    recordings = study["Recordings"]((torch.arange(300.0), labels), kinds, speakers, speakers)
    recorded = {channel: recordings for channel in ("", "far")}
    tasks, again = (study["tasks_of"](recordings, ("", "far"), 20, 48, True, seed) for _ in range(2))
    assert (
        len({task.name for task in tasks[:8]}) == 8 == len({task.name for task in tasks})
    )  # all, before one comes again
    assert {task.turned for task in tasks} == {False, True}
    for task, same in zip(tasks, again, strict=True):
        assert task.name == same.name
        assert (task.train == same.train).all()
        assert not set(task.train) & set(task.held_out)
        assert set(kinds[task.train]) == {"bona fide", task.name[:3]}
        for rows in (task.train, task.held_out):
            _, called = study["batch_of"](recorded, task, rows)
            assert called.sum() * 2 == len(rows)
            assert ((called == 1) == ((kinds[rows] != "bona fide") != task.turned)).all()
    spoken = [set(), set()]
    for task in tasks:
        spoken[int(task.name[-1])] |= set(speakers[task.train][kinds[task.train] == "bona fide"])
    assert not spoken[0] & spoken[1]
    for gradual in (False, True):
        rows = [batch[0] for batch in study["batches"](recorded, tasks, 0, 100, gradual, np.random.default_rng(seed))]
        from_next = [np.isin(each.numpy(), np.setdiff1d(tasks[1].train, tasks[0].train)).mean() for each in rows]
        assert max(from_next[:50]) == 0
        assert (np.mean(from_next[50:75]) < np.mean(from_next[75:])) == gradual
        assert all(len(each) == 16 for each in rows)
    few = np.concatenate([np.flatnonzero(kinds != "A02"), np.flatnonzero(kinds == "A02")[:5]])
    fewer = study["Recordings"]((recordings.data[0][few], labels[few]), kinds[few], speakers[few], speakers[few])
    with pytest.raises(ValueError, match="A02 has 5 recordings"):
        study["tasks_of"](fewer, ("",), 3, 48, False, seed)
