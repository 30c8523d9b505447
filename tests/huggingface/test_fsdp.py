"""accelerate and Trainer under FSDP2, on two CPU processes.

accelerate 1.15 takes FSDP on accelerators only (state.py): on the CPU it goes by DDP and drops the plugin without a word. Here
the plugin is put back, and all that follows runs as it comes: prepare, save_state, load_state, Trainer.
"""

import dataclasses
import os
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import needs_gloo, run_in_processes
from torch import nn

from hf_neuroplastic import DropInCallback, DropInConfig, NeuroPlastic, OneOff

BUSY = DropInConfig(interval=1, maturity=0, max_fraction=0.2, threshold=float("inf"), stop=None)
pytestmark = needs_gloo


def allow_fsdp_on_the_cpu():
    from accelerate import state
    from accelerate.utils import DistributedType

    stock = state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        stock(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = init


def whole(model):
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone() for p in model.parameters()]


def batch(step, rank):
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


def by_accelerate(rank, folder, kind):
    """As on one process, and save_state and load_state go on with the same bits."""
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap", state_dict_type=kind)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = network()
    model, optimizer = accelerator.prepare(model, NeuroPlastic(model.parameters(), lr=0.05))
    assert all(hasattr(p, "device_mesh") for p in model.parameters())

    def train(steps):
        for step in steps:
            accelerator.backward(model(batch(step, rank)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        return whole(model)

    train(range(3))
    accelerator.save_state(folder)
    wanted = train(range(3, 6))
    accelerator.load_state(folder)
    assert all(map(torch.equal, train(range(3, 6)), wanted))
    alone = network()
    optimizer = NeuroPlastic(alone.parameters(), lr=0.05)
    for step in range(6):
        alone(torch.cat([batch(step, each) for each in range(2)])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for got, want in zip(wanted, alone.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def by_the_example(rank, folder, kind):
    """The loop of examples/accelerate_loop.py, as `accelerate launch --use_fsdp` starts it."""
    from accelerate import Accelerator

    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="NO_WRAP")
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "accelerate_loop.py"))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.is_fsdp2
    told = example["train"](accelerator, 40, with_dropin=False)
    assert told.startswith("2 processes, 40 steps: accuracy")
    assert told.endswith("1 different networks")


def trainer_of(folder, steps, callbacks=(), **settings):
    from tiny import tiny_batch, tiny_model
    from transformers import Trainer, TrainingArguments

    whole_batch = tiny_batch("vit", 16)
    rows = [{name: value[row] for name, value in whole_batch.items()} for row in range(16)]
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_steps=2,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        **settings,
    )
    return Trainer(
        tiny_model("vit"),
        arguments,
        train_dataset=rows,
        optimizer_cls_and_kwargs=(NeuroPlastic, {"lr": 1e-2}),
        callbacks=list(callbacks),
    )


def by_trainer(rank, folder, kind):
    """A run with DropIn that Trainer resumes ends with the bits of the one that went through."""
    # accelerate shards the embeddings of a ViT twice if its own policy chooses the layers
    config = {"version": 2, "state_dict_type": kind, "transformer_layer_cls_to_wrap": ["ViTLayer"]}
    ends = []
    for resume in (None, f"{folder}/checkpoint-2"):
        watching = DropInCallback(BUSY)
        trainer = trainer_of(
            folder, 4, [watching], fsdp=True, fsdp_config={**config, "cpu_ram_efficient_loading": False}
        )
        trainer.train(resume_from_checkpoint=resume)
        assert all(hasattr(p, "device_mesh") for p in trainer.model.parameters())
        assert all(count > 0 for count in watching.dropin.replaced)
        ends.append([*whole(trainer.model), *watching.dropin.replaced])
    assert all(map(torch.equal, *ends))


def by_trainer_with_dropin(rank, folder, kind):
    """Neurons replaced and grown under Trainer: both ways to load, and a resumed run ends with the same bits."""
    growing = dataclasses.replace(BUSY, extra_neurons=OneOff(0.3, before=0, after=4))
    for frugal in (False, True):
        config = {"version": 2, "state_dict_type": kind, "transformer_layer_cls_to_wrap": ["ViTLayer"]}
        config["cpu_ram_efficient_loading"] = frugal
        place, drops, ends = f"{folder}/{frugal}", [], []
        for resume in (None, f"{place}/checkpoint-2"):
            callback = DropInCallback(growing, resume_from=resume)
            trainer = trainer_of(place, 4, [callback], fsdp=True, fsdp_config=config)
            trainer.train(resume_from_checkpoint=resume)
            assert all(hasattr(p, "device_mesh") for p in trainer.model.parameters())
            drops.append(callback.dropin)
            ends.append(whole(trainer.model))
        assert all(map(torch.equal, *ends))
        assert all(int(known.replaced) > 0 and int(known.statistics.active.sum()) == 28 for known in drops[0].watched)
        for one, other in zip(*(dropin.statistics for dropin in drops), strict=True):
            assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def side_files_of_ddp(rank, folder, kind):
    """The first process writes them, once for each checkpoint; the others' DropIn is the same."""
    from hf_neuroplastic.huggingface import callback

    written = []
    save = callback.save_side_files
    callback.save_side_files = lambda dropin, place: (written.append(str(place)), save(dropin, place))[1]
    watching = DropInCallback(BUSY)
    trainer_of(folder, 4, [watching]).train()
    assert written == ([f"{folder}/checkpoint-{step}" for step in (2, 4)] if rank == 0 else [])
    resumed = DropInCallback(BUSY)
    trainer_of(folder, 4, [resumed]).train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    for one, other in zip(resumed.dropin.statistics, watching.dropin.statistics, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def run(case, folder, kind, rank):
    if case is not side_files_of_ddp:
        allow_fsdp_on_the_cpu()
    case(rank, folder, kind)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (by_accelerate, "FULL_STATE_DICT"),
        (by_accelerate, "SHARDED_STATE_DICT"),
        (by_the_example, None),
        (by_trainer, "FULL_STATE_DICT"),
        (by_trainer, "SHARDED_STATE_DICT"),
        (by_trainer_with_dropin, "FULL_STATE_DICT"),
        (by_trainer_with_dropin, "SHARDED_STATE_DICT"),
        (side_files_of_ddp, None),
    ],
)
def test_two_processes(case, kind, tmp_path):
    run_in_processes(2, partial(run, case, str(tmp_path), kind))
