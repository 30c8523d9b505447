"""What `stream` refuses before it writes anything, and what becomes of its processes when it is killed."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from detectors import save_detector
from typer.testing import CliRunner

from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.cli import app

POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from hf_neuroplastic.cli.stream import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


PLAN = {
    **{"start": ["A01"], "stages": ["A02"], "apart": "utterance"},
    **{"optimizers": ["adamw"], "rates": [1e-3], "seeds": [0]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    write_corpus(folder / "corpus", utterances={"train": 40, "dev": 8, "eval": 8})
    save_detector("wav2vec2", folder / "small")
    save_detector("wav2vec2", folder / "sigmoid", hidden_act="sigmoid")
    save_detector("ast", folder / "fixed")
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": None}, "lacks model"),
        ({"model": 3}, "model in .* must be"),
        ({"model": "absent/"}, "absent/"),
        ({"data": None}, "lacks data"),
        ({"data": []}, "data in .* must be"),
        ({"data": "absent"}, "absent: no such folder"),
        ({"start": ["A77"]}, "the data have no attack A77"),
        ({"by": "corpus"}, "the data have no corpus"),
        ({"format": "unheard"}, "format must be one of"),
        ({"arms": ["consolidation"]}, "must make at least one arm"),
        ({"optimizers": ["adamw", "adamw"]}, "must make at least one arm, and none twice"),
        ({"arms": {"mine": {"freeze": "first:99"}}}, "first:99"),
        ({"model": "sigmoid", "arms": ["neurons"]}, "no feed-forward layer that could hold neurons"),
        ({"model": "sigmoid", "arms": ["dropin"]}, "extra_neurons is not possible"),
        ({"model": "fixed", "recipe": {"seconds": 9.0}}, "seconds must be at most"),
    ],
)
def test_what_cannot_begin_is_said_before_anything_is_written(home, tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(home)
    settings = {"model": "small", "data": "corpus", "arms": ["full"], **PLAN}
    (tmp_path / "attacks.yaml").write_text(yaml.safe_dump(settings | change))
    arguments = ["stream", "--config", str(tmp_path / "attacks.yaml"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert re.search(words, line)
    assert not (tmp_path / "out").exists()


def test_quick_takes_the_first_trial_of_every_arm():
    from hf_neuroplastic.cli.stream import _quickened

    arms = {"full": {}, "mine": {"trials": [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}]}, "head": None}
    small = _quickened({"arms": arms, "rates": [1e-3, 1e-4], "recipe": None})
    assert small["arms"] == {"full": {}, "mine": {"trials": [{"learning_rate": 1e-3}]}, "head": None}
    assert (small["rates"], small["recipe"]) == ([1e-3], {"steps": 10})
    assert _quickened({"arms": ["full"]})["arms"] == ["full"]


def test_nothing_is_taken_of_training_that_a_signal_ended(home, tmp_path, monkeypatch):
    from hf_neuroplastic.audio.corpora.layouts import load_corpus
    from hf_neuroplastic.audio.stream import course
    from hf_neuroplastic.audio.stream.parts import parts_of
    from hf_neuroplastic.audio.stream.settings import stream_of

    plan = stream_of({**PLAN, "arms": ["full"], "recipe": {"steps": 3, "batch_size": 4, "seconds": 0.4}})
    parts = parts_of(load_corpus(home / "corpus", "all"), plan)
    train = course.fine_tune

    def interrupted(*arguments, **options):
        signals = iter([signal.SIGINT])  # of a second one training itself would end at once
        return train(*arguments, **options, log=lambda _: [os.kill(os.getpid(), each) for each in signals])

    monkeypatch.setattr(course, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        course.train_start(str(home / "small"), parts, plan, 0, tmp_path / "start")
    assert not (tmp_path / "start").exists()
    with pytest.raises(KeyboardInterrupt):
        course.course(home / "small", parts, plan, course.Job(0, 0, 0))


@pytest.mark.skipif(not os.path.isdir("/proc/1"), reason="needs /proc")
def test_no_process_of_the_pool_outlives_a_killed_stream(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    first = subprocess.Popen([sys.executable, str(tmp_path / "pool.py")], stdout=subprocess.PIPE, text=True)
    child = int(first.stdout.readline())
    first.send_signal(signal.SIGKILL)
    first.wait()
    for _ in range(100):
        if not _lives(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail(f"process {child} went on")


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False
