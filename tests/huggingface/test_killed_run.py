"""A run that is killed while it writes resumes from its last whole checkpoint and ends as if nothing had happened."""

import os
import signal
import sys

import pytest
import torch
from processes import FORKED
from runs import GROWING, trainer_of
from safetensors.torch import load_file

from hf_neuroplastic import last_whole_checkpoint


def train(folder, fatal, tell):
    """Six steps, saved after every second; killed at the file of that number that is written for checkpoint-4."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer, _ = trainer_of(folder, "ast", config=GROWING, save_steps=2)
    written = 0

    def count(event, details):
        nonlocal written
        if event not in ("os.rename", "open") or "checkpoint-4" not in str(details[0]):
            return
        if event == "os.rename" or "w" in str(details[1]) or (isinstance(details[2], int) and details[2] & os.O_WRONLY):
            written += 1
            if written == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    checkpoint = last_whole_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    tell.send(written)


def end_of(folder, fatal=0):
    """The exit code, and how many files were written for checkpoint-4."""
    told, tell = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=train, args=(str(folder), fatal, tell))
    process.start()
    process.join(300)
    return process.exitcode, told.recv() if told.poll() else None


def test_kills_at_several_points_of_a_save(tmp_path):
    code, writes = end_of(tmp_path / "whole")
    assert code == 0
    assert writes >= 4
    expected = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    for fatal in (1, writes // 2, writes):  # at the first file, in the middle, before the last side file is in place
        folder = tmp_path / str(fatal)
        assert end_of(folder, fatal) == (-signal.SIGKILL, None)
        assert end_of(folder)[0] == 0
        found = load_file(folder / "checkpoint-6" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_the_best_model_is_loaded_at_the_end(family, tmp_path):
    """And not the last: the greatest loss is asked for."""
    best_of = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    settings = {"save_steps": 2, "eval_steps": 2, "eval_strategy": "steps", **best_of}
    trainer, _ = trainer_of(tmp_path, family, config=GROWING, **settings)
    trainer.train()
    place = trainer.state.best_model_checkpoint
    assert place != f"{tmp_path}/checkpoint-6"
    best = type(trainer.model).from_pretrained(place)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), best.parameters(), strict=True))
