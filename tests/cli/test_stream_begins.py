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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    write_corpus(folder / "corpus", utterances={"train": 40, "dev": 8, "eval": 8})
    save_detector("wav2vec2", folder / "small")
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
    ],
)
def test_what_cannot_begin_is_said_before_anything_is_written(home, tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(home)
    settings = {
        "model": "small", "data": "corpus", "start": ["A01"], "stages": ["A02"], "arms": ["full"], "apart": "utterance",
        "optimizers": ["adamw"], "rates": [1e-3], "seeds": [0],
    }  # fmt: skip
    (tmp_path / "attacks.yaml").write_text(yaml.safe_dump(settings | change))
    arguments = ["stream", "--config", str(tmp_path / "attacks.yaml"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert re.search(words, line)
    assert not (tmp_path / "out").exists()


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
