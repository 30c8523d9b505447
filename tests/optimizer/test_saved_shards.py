"""State that torch.distributed.checkpoint saves on some processes goes on, on as many others."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import needs_gloo, run_in_processes
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from hf_neuroplastic import NeuroPlastic

RANKS = {  # of four processes, those that train together
    "one": [0],
    "two": [0, 1],
    "three": [0, 1, 2],
    "four": [0, 1, 2, 3],
    "hybrid": [[0, 1], [2, 3]],
    "tensor": [[0, 1], [2, 3]],
}
OPTIONS = {
    "adamw": {},
    "trace": {"activity": "trace", "weight_decay": 0.01},
    "exact": {"statistics": "exact", "skip_nonfinite": True},
    "momentum": {"base": "momentum", "warmup_steps": 4},
    "gradient": {"base": "gradient", "lr": 0.1},
}
PAIRS = [
    *(("two", after) for after in ("two", "three", "four", "hybrid", "tensor", "one")),
    *((before, "two") for before in ("one", "three", "hybrid", "tensor")),
]
BEFORE, AFTER = 3, 3


def begin(mesh, layout, kind):
    """A network whose rows are shared unevenly, some by fewer processes than there are; its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3), torch.nn.Linear(3, 1))
    if layout == "tensor":
        parallelize_module(model, mesh["inner"], {"0": ColwiseParallel(output_layouts=Replicate())})
        mesh = mesh["outer"]
    if layout != "one":
        fully_shard(model, mesh=mesh)
    return model, NeuroPlastic(model.parameters(), **{"lr": 0.05, **OPTIONS[kind]})


def train(model, optimizer, steps):
    for step in steps:
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone() for p in model.parameters()]


def state_of(model, optimizer, full=False):
    parts = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=full))
    return dict(zip(("model", "optimizer"), parts, strict=True))


def take(model, optimizer, state, full=False):
    parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
    set_state_dict(model, optimizer, **parts, options=StateDictOptions(full_state_dict=full))


def save(mesh, layout, kind, full, folder, where):
    """Saves amid training; returns what the uninterrupted run comes to."""
    model, optimizer = begin(mesh, layout, kind)
    train(model, optimizer, range(BEFORE))
    dcp.save(state_of(model, optimizer, full), checkpoint_id=folder, **where)
    return train(model, optimizer, range(BEFORE, BEFORE + AFTER))


def load(mesh, layout, kind, full, folder, where):
    """Goes on from what was saved; returns what the resumed run comes to."""
    model, optimizer = begin(mesh, layout, kind)
    state = state_of(model, optimizer, full)
    dcp.load(state, checkpoint_id=folder, **where)
    take(model, optimizer, state, full)
    assert all(entry["step"] == BEFORE for entry in optimizer.state_dict()["state"].values())
    return train(model, optimizer, range(BEFORE, BEFORE + AFTER))


def go_on(folder, rank):
    meshes, groups = {}, {}
    for layout, ranks in RANKS.items():
        names = ("outer", "inner")[: torch.tensor(ranks).ndim]
        meshes[layout] = DeviceMesh("cpu", ranks, mesh_dim_names=names)
        groups[layout] = dist.new_group(torch.tensor(ranks).flatten().tolist())
    ends = {}

    def do(action, layout, kind, full, saved_by):
        place = Path(folder) / f"{saved_by}-{kind}-{full}"
        if rank in torch.tensor(RANKS[layout]).flatten().tolist():
            where = {"no_dist": True} if layout == "one" else {"process_group": groups[layout]}
            ends[action, layout, kind, full, saved_by] = action(meshes[layout], layout, kind, full, place, where)
        dist.barrier()

    for kind, full in [*((kind, False) for kind in OPTIONS), ("adamw", True), ("exact", True)]:
        for before in dict.fromkeys(before for before, _ in PAIRS):
            do(save, before, kind, full, before)
        for before, after in PAIRS:
            do(load, after, kind, full, before)
    for (action, layout, kind, full, before), resumed in ends.items():
        wanted = ends.get((save, before, kind, full, before))
        if action is load and wanted is not None:
            case = f"{kind}, whole tensors {full}, saved by {before}, loaded by {layout}"
            tolerance = 0 if layout == before else 1e-6
            for got, want in zip(resumed, wanted, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=tolerance, msg=lambda text, c=case: f"{c}: {text}")


@needs_gloo
def test_training_goes_on_by_as_many_processes_and_by_others(tmp_path):
    """Bit for bit by as many; by others, whose sums are of another order, to 1e-6."""
    run_in_processes(4, partial(go_on, str(tmp_path)))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_codes_of_eight_bits_are_not_read_as_numbers(tmp_path):
    """torch.distributed.checkpoint copies what it finds into tensors of another dtype without a word."""

    def trained(bits, steps):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 128)
        optimizer = NeuroPlastic(model.parameters(), lr=0.01, state_bits=bits)
        for _ in range(steps):
            model(torch.randn(4, 64)).square().sum().backward()
            optimizer.step()
        return model, optimizer

    dcp.save(state_of(*trained(8, 2)), checkpoint_id=tmp_path, no_dist=True)
    for bits in (8, 32):
        pair = trained(bits, 0)
        state = state_of(*pair)
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
        if bits == 8:
            take(*pair, state)
        else:
            with pytest.raises(ValueError, match=r"0 to 255.*codes.*state_bits=8"):
                take(*pair, state)
