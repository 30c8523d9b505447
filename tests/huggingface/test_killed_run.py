"""A run that is killed while it writes resumes from its last whole checkpoint and ends as if nothing had happened."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import os, signal, sys
folder, fatal = sys.argv[1], int(sys.argv[2])
sys.path[:0] = sys.argv[3].split(os.pathsep)
import torch
from tiny import tiny_batch, tiny_model
from transformers import Trainer, TrainingArguments
from hf_neuroplastic import DropInCallback, DropInConfig, NeuroPlastic, last_whole_checkpoint

torch.set_num_threads(1)
config = DropInConfig.plasticity(5, prune=(0.4, 0.9), interval=1, maturity=1)
batch = tiny_batch("ast", 8)
rows = [{name: value[index] for name, value in batch.items()} for index in range(8)]
model = tiny_model("ast")
arguments = TrainingArguments(
    folder, use_cpu=True, report_to=[], disable_tqdm=True, max_steps=6, save_steps=2, per_device_train_batch_size=4
)
trainer = Trainer(
    model, arguments, train_dataset=rows, callbacks=[DropInCallback(config)],
    optimizers=(NeuroPlastic(model.parameters(), lr=1e-3), None),
)
written = 0
def count(event, details):
    global written
    if event in ("os.rename", "open") and isinstance(details[0], str) and "checkpoint-4" in details[0]:
        if event == "os.rename" or "w" in str(details[1]) or (isinstance(details[2], int) and details[2] & os.O_WRONLY):
            written += 1
            if written == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
checkpoint = last_whole_checkpoint(folder)
trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
print(written)
"""


def _run(folder: Path, fatal: int = 0) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[2]
    paths = ":".join(map(str, (root / "tests" / "support", root, root / "kernels" / "torch-ext")))
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(fatal), paths], capture_output=True, text=True, timeout=300
    )


def test_kills_at_several_points_of_a_save(tmp_path):
    whole = _run(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    writes = int(whole.stdout.split()[-1])
    assert writes >= 4
    expected = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    for fatal in (1, writes // 2, writes):  # at the first file, in the middle, before the last side file is in place
        folder = tmp_path / str(fatal)
        assert _run(folder, fatal).returncode == -signal.SIGKILL
        resumed = _run(folder)
        assert resumed.returncode == 0, resumed.stderr
        found = load_file(folder / "checkpoint-6" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_the_best_model_is_loaded_at_the_end(family, tmp_path):
    from runs import GROWING, Samples
    from tiny import tiny_model
    from transformers import Trainer, TrainingArguments

    from hf_neuroplastic import DropInCallback, NeuroPlastic

    model = tiny_model(family)
    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=6,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        per_device_train_batch_size=4,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Samples(family),
        eval_dataset=Samples(family),
        callbacks=[DropInCallback(GROWING)],
        optimizers=(NeuroPlastic(model.parameters(), lr=1e-2), None),
    )
    trainer.train()
    best = type(model).from_pretrained(trainer.state.best_model_checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), best.parameters(), strict=True))
