"""The real DeepSpeed, where it is installed, on two CPU processes: stage 0 trains right, what ZeRO flattens is refused."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
STAGES = """
import os, re, sys
import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic

EAGER = DropInConfig(interval=1, maturity=0, max_fraction=0.3, threshold=float("inf"), stop=None)
FLAT = r"of NeuroPlastic was given 2 tensors and holds one vector of \\d+ elements.*ZeRO.*fully_shard.*strength=0"
deepspeed.init_distributed("gloo")
rank = dist.get_rank()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def groups_of(model):
    return [{"params": [p for p in model.parameters() if (p.ndim > 1) == wide]} for wide in (True, False)]


def batch(step, rank):
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def alone(make):
    model = network()
    optimizer = make(groups_of(model))
    for step in range(4):
        model(torch.cat([batch(step, rank) for rank in range(2)])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


def engine_of(model, make, stage, half):
    config = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": stage}, "steps_per_print": 10**9}
    config |= {"zero_allow_untested_optimizer": True} | ({"bf16": {"enabled": True}} if half else {})
    return deepspeed.initialize(model=model, optimizer=make(groups_of(model)), config=config)[:2]


def train(make, stage, *, watched=False, half=False):
    model = network()
    dropin = DropIn(model, EAGER) if watched else None
    engine, wrapper = engine_of(model, make, stage, half)
    for step in range(4):
        engine.backward(engine(batch(step, rank).to(next(model.parameters()).dtype)).square().mean())
        engine.step()
        if dropin is not None:
            dropin.step(wrapper)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return [p.detach().clone() for p in model.parameters()], dropin


def require_refusal(words, *arguments, **options):
    try:
        train(*arguments, **options)
    except (TypeError, ValueError) as error:
        assert re.search(words, str(error)), error
    else:
        raise AssertionError(f"not refused: {arguments}, {options}")


def require_near(got, want):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def plastic(groups):
    return NeuroPlastic(groups, lr=0.05)


def bare(groups):
    return NeuroPlastic(groups, lr=0.05, strength=0.0)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.05, weight_decay=0.0)


require_near(train(plastic, 0)[0], alone(plastic))
weights, dropin = train(plastic, 0, watched=True)
assert dropin.events == 4 and dropin.replaced[0] == 12
mine = torch.cat([p.flatten() for p in weights])
every = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(every, mine)
assert torch.equal(*every)
for stage in (1, 2, 3):
    require_refusal(FLAT, plastic, stage)
    require_near(train(bare, stage)[0], alone(adamw))
    why = "is sharded by DeepSpeed's ZeRO-3" if stage == 3 else "is a copy of what DeepSpeed's ZeRO trains"
    require_refusal(f"a weight of '0' {why}.*DDP", adamw, stage, watched=True)
train(plastic, 0, half=True)
require_refusal("copies in another precision, as DeepSpeed's bf16", adamw, 0, watched=True, half=True)
print("all seen")
sys.stdout.flush()
dist.barrier()
os._exit(0)  # gloo's threads now and then do not survive the end of Python
"""

TRAINER = """
import os, sys
import deepspeed
import torch
from tiny import tiny_batch, tiny_model
from transformers import Trainer, TrainingArguments
from hf_neuroplastic import DropInCallback, DropInConfig, NeuroPlastic

folder, stage, door, watched = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "dropin"
config = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 2, "gradient_accumulation_steps": 1}
config["zero_optimization"] = {"stage": stage}
settings = {"report_to": [], "disable_tqdm": True, "lr_scheduler_type": "constant", "learning_rate": 1e-2}
arguments = TrainingArguments(folder, max_steps=4, per_device_train_batch_size=2, deepspeed=config, **settings)
model = tiny_model("vit")
doors = {
    "optimizers": {"optimizers": (NeuroPlastic(model.parameters()), None)},
    "class": {"optimizer_cls_and_kwargs": (NeuroPlastic, {"lr": 1e-2})},
    "adamw": {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": 1e-2})},
}
eager = DropInConfig(interval=1, maturity=0, max_fraction=0.1, threshold=float("inf"), stop=None)
callbacks = [DropInCallback(eager)] if watched else []
batch = tiny_batch("vit", 16)
rows = [{name: value[row] for name, value in batch.items()} for row in range(16)]
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=callbacks, **doors[door])
try:
    trainer.train()
    inner = trainer.optimizer.optimizer
    print("steps by", type(getattr(inner, "optimizer", None) or inner).__name__)
    if watched:
        print("replaced", sum(int(count) for count in callbacks[0].dropin.replaced))
except TypeError as error:
    print("refused at step", trainer.state.global_step, error)
sys.stdout.flush()
os._exit(0)  # gloo's threads now and then do not survive the end of Python
"""


def launch(folder, script, processes, *arguments):
    file = folder / "script.py"
    file.write_text(script)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(file), *arguments]
    support = str(Path(__file__).parent / "support")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_stages(tmp_path):
    assert launch(tmp_path, STAGES, 2).count("all seen") == 2


@pytest.mark.parametrize(
    ("stage", "door", "dropin", "words"),
    [
        ("0", "class", "dropin", "steps by NeuroPlastic\nreplaced "),
        ("1", "class", "alone", "refused at step 0 a group of NeuroPlastic was given"),
        ("2", "adamw", "dropin", "refused at step 0 a weight of 'vit.layers.0.mlp' is a copy"),
        ("3", "adamw", "dropin", "refused at step 0 a weight of 'vit.layers.0.mlp' is sharded by DeepSpeed's ZeRO-3"),
        ("2", "optimizers", "alone", "steps by AdamW"),  # transformers drops `optimizers`
    ],
)
def test_trainer(stage, door, dropin, words, tmp_path):
    assert words in launch(tmp_path, TRAINER, 1, str(tmp_path / "out"), stage, door, dropin)
