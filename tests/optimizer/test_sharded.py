"""Means and norms are of the whole tensor also where it is sharded over processes."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from hf_neuroplastic import NeuroPlastic

BASES = ("gradient", "adamw", "momentum")
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


def train(model, base):
    optimizer = NeuroPlastic(model.parameters(), lr=0.05, base=base, warmup_steps=2)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        model(torch.randn(8, 6, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]


def compare_in_two_dimensions(rank, port):
    """FSDP over tensor parallelism: a shard of a shard."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for base in BASES:
        torch.manual_seed(0)
        whole = torch.nn.Sequential(torch.nn.Linear(6, 8, dtype=torch.float64))
        sharded = torch.nn.Sequential(torch.nn.Linear(6, 8, dtype=torch.float64))
        sharded.load_state_dict(whole.state_dict())
        plan = {"0": ColwiseParallel(output_layouts=Replicate(), use_local_output=True)}
        parallelize_module(sharded, mesh["tensor"], plan)
        fully_shard(sharded, mesh=mesh["data"])
        for got, want in zip(train(sharded, base), train(whole, base), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()


def compare(rank, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for base in BASES:
        torch.manual_seed(0)
        whole = torch.nn.Linear(6, 5, dtype=torch.float64)  # 5 rows over 2 processes: unequal shards
        sharded = torch.nn.Linear(6, 5, dtype=torch.float64)
        sharded.load_state_dict(whole.state_dict())
        fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
        for got, want in zip(train(sharded, base), train(whole, base), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()


@pytest.mark.parametrize(("comparison", "processes"), [(compare, 2), (compare_in_two_dimensions, 4)])
def test_a_sharded_model_trains_like_the_whole_one(comparison, processes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(comparison, args=(port,), nprocs=processes)
