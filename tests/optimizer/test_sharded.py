"""Means and norms are of the whole tensor also where it is sharded over processes, and cost one collective for each mesh."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, run_in_processes
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from hf_neuroplastic import NeuroPlastic

BASES = ("gradient", "adamw", "momentum")
STATISTICS = ("previous", "exact")
pytestmark = needs_gloo


def network(dtype=torch.float64):
    """Rows that 2 and 4 processes share unequally, a bias with fewer elements than processes, and one of a single element."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3), torch.nn.Linear(3, 1)).to(
        dtype
    )


def groups_of(model):
    tensors = list(model.parameters())
    return [
        {"params": [p for p in tensors if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in tensors if p.ndim < 2]},
    ]


def train(model, optimizer, steps=6, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        dtype = next(model.parameters()).dtype
        model(torch.randn(8, 6, generator=generator, dtype=dtype)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]


def options_of(base, statistics):
    return {"lr": 0.05, "base": base, "warmup_steps": 2, **({} if base == "gradient" else {"statistics": statistics})}


def compare_in_two_dimensions(rank):
    """FSDP over tensor parallelism: a shard of a shard."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for base in BASES:
        torch.manual_seed(0)
        whole = torch.nn.Sequential(torch.nn.Linear(6, 8, dtype=torch.float64))
        sharded = copy.deepcopy(whole)
        plan = {"0": ColwiseParallel(output_layouts=Replicate(), use_local_output=True)}
        parallelize_module(sharded, mesh["tensor"], plan)
        fully_shard(sharded, mesh=mesh["data"])
        optimizers = [NeuroPlastic(each.parameters(), **options_of(base, "previous")) for each in (sharded, whole)]
        for got, want in zip(train(sharded, optimizers[0]), train(whole, optimizers[1]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def compare(rank):
    """Uneven and empty shards, by every form."""
    for base, statistics, backend in itertools.product(BASES, STATISTICS, ("auto", "reference")):
        whole, sharded = network(), network()
        for layer in sharded:
            fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        options = {**options_of(base, statistics), "backend": backend}
        optimizers = [NeuroPlastic(groups_of(each), **options) for each in (sharded, whole)]
        for got, want in zip(train(sharded, optimizers[0]), train(whole, optimizers[1]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def compare_with_an_idle_group(rank):
    """The first group has no gradients, or none now and then."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for idle in (lambda step: True, lambda step: step % 2):
        torch.manual_seed(0)
        starts = [torch.randn(4, 4, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)]
        whole = [torch.nn.Parameter(start.clone()) for start in starts]
        sharded = [torch.nn.Parameter(distribute_tensor(start, mesh, [Shard(0)])) for start in starts]
        optimizers = [NeuroPlastic([{"params": [p]} for p in each], lr=0.05) for each in (sharded, whole)]
        for step in range(6):
            for number, (one, other) in enumerate(zip(sharded, whole, strict=True)):
                gradient = torch.randn(other.shape, dtype=torch.float64)
                left_out = number == 0 and idle(step)
                one.grad = None if left_out else distribute_tensor(gradient, mesh, [Shard(0)])
                other.grad = None if left_out else gradient
            for optimizer in optimizers:
                optimizer.step()
        for one, other in zip(sharded, whole, strict=True):
            torch.testing.assert_close(one.full_tensor(), other.detach(), rtol=1e-11, atol=1e-11)
        assert all(state["sums"].all() for state in optimizers[0].state_dict()["state"].values())


def round_at_random(rank):
    """The same bits whatever the sharding; without plasticity, since sums of another order differ in the last bit."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for placement in (Shard(0), Shard(1), Replicate()):
        torch.manual_seed(0)
        start = torch.randn(5, 7, dtype=torch.bfloat16)
        params = [
            torch.nn.Parameter(distribute_tensor(start.clone(), mesh, [placement])),
            torch.nn.Parameter(start.clone()),
        ]
        options = {"lr": 1e-3, "strength": 0.0, "stochastic_rounding": True, "seed": 5}
        optimizers = [NeuroPlastic([p], **options) for p in params]
        for _ in range(5):
            gradient = torch.randn(5, 7, dtype=torch.bfloat16)
            params[0].grad = distribute_tensor(gradient, mesh, [placement])
            params[1].grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(params[0].full_tensor(), params[1].detach())
        assert not torch.equal(params[1].detach(), start)


def compare_hybrid(rank):
    """Replicas of shards (HSDP)."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    whole, sharded = network(), network()
    fully_shard(sharded, mesh=mesh)
    optimizers = [NeuroPlastic(each.parameters(), lr=0.05) for each in (sharded, whole)]
    for got, want in zip(train(sharded, optimizers[0]), train(whole, optimizers[1]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def compare_placements(rank):
    """Every placement of a tensor by hand, with gradients placed otherwise."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for placement, of_gradient in itertools.product((Shard(0), Shard(1), Replicate()), repeat=2):
        torch.manual_seed(0)
        start = torch.randn(5, 3, dtype=torch.float64)
        params = [torch.nn.Parameter(distribute_tensor(start, mesh, [placement])), torch.nn.Parameter(start.clone())]
        optimizers = [NeuroPlastic([p], lr=0.05) for p in params]
        for _ in range(4):
            gradient = torch.randn(5, 3, dtype=torch.float64)
            params[0].grad = distribute_tensor(gradient, mesh, [of_gradient]) if of_gradient == placement else None
            if params[0].grad is None:
                params[0].grad = distribute_tensor(gradient, mesh, [of_gradient]).redistribute(mesh, [placement])
            params[1].grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(params[0].full_tensor(), params[1].detach(), rtol=1e-11, atol=1e-11)


def count(rank):
    """One all-reduce for all tensors of all groups, whatever their number."""
    for layers in (1, 5):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(layers)))
        for layer in model:
            fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        optimizer = NeuroPlastic(groups_of(model), lr=1e-3)
        train(model, optimizer, 2)
        model(torch.randn(4, 6)).square().sum().backward()
        with CommDebugMode() as seen:
            optimizer.step()
        assert seen.get_total_counts() == 1, seen.get_comm_counts()


def resume(rank):
    """Full and sharded state, saved while sums are under way, goes on with the same bits."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for full in (False, True):
        model = network(torch.float32)
        fully_shard(model, mesh=mesh)
        optimizer = NeuroPlastic(model.parameters(), lr=0.05)
        train(model, optimizer, 3)
        settings = StateDictOptions(full_state_dict=full)
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=settings))
        twin = network(torch.float32)
        twin.load_state_dict({name: value.full_tensor() for name, value in model.state_dict().items()})
        fully_shard(twin, mesh=mesh)
        other = NeuroPlastic(twin.parameters(), lr=0.05)
        set_optimizer_state_dict(twin, other, saved, options=settings)
        for got, want in zip(train(twin, other, 3, start=3), train(model, optimizer, 3, start=3), strict=True):
            assert torch.equal(got, want)


def hundred_steps(rank):
    whole, sharded = network(torch.float32), network(torch.float32)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizers = [NeuroPlastic(each.parameters(), lr=1e-3) for each in (sharded, whole)]
    for got, want in zip(train(sharded, optimizers[0], 100), train(whole, optimizers[1], 100), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("comparison", "processes"),
    [
        (compare, 2),
        (compare, 4),
        (compare_in_two_dimensions, 4),
        (compare_with_an_idle_group, 2),
        (round_at_random, 2),
        (round_at_random, 3),
        (compare_hybrid, 4),
        (compare_placements, 2),
        (count, 2),
        (resume, 2),
        (hundred_steps, 2),
    ],
)
def test_a_sharded_model_trains_like_the_whole_one(comparison, processes):
    run_in_processes(processes, comparison)
