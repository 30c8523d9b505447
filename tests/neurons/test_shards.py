"""DropIn on shards of fully_shard (FSDP2) does to every bit what it does to the whole model."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, run_in_processes
from tiny import tiny_batch, tiny_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic, OneOff, compact, reserve
from hf_neuroplastic.neurons.decide.decisions import Action, Decision

pytestmark = needs_gloo
EVENTFUL = {"interval": 2, "maturity": 0, "max_fraction": 0.3, "threshold": float("inf"), "stop": None}


def network(layers=1):
    """Widths that 2, 3 and 4 processes share unequally, and biases shorter than the processes are many."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 5)) for _ in range(layers)]
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), *blocks, nn.Linear(5, 2))


def whole_weights(model):
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def backward(model, step, rank=0):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(8, 6, generator=generator, dtype=next(model.parameters()).dtype)
    model(x).square().mean().backward()


def run_together(rank, config, *, optimizer=torch.optim.AdamW, steps=12, shard=fully_shard, build=network, events=None):
    """The sharded and the whole model on the same data: the same decisions and, to the bit, the same weights."""
    whole, sharded = build(), build()
    drops = [DropIn(model, config, total_steps=steps) for model in (sharded, whole)]
    shard(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizers = [optimizer(model.parameters(), lr=1e-2) for model in (sharded, whole)]
    for step in range(steps):
        for model, one, dropin in zip((sharded, whole), optimizers, drops, strict=True):
            backward(model, step)
            one.step()
            one.zero_grad()
            dropin.step(one)
        for ours, theirs in zip(drops[0].statistics, drops[1].statistics, strict=True):
            assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert drops[0].events == drops[1].events > 0
    for got, want in zip(whole_weights(sharded), whole_weights(whole), strict=True):
        assert torch.equal(got, want)
    for one, other in zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True):
        for name, value in other.items():
            held = one[name].full_tensor() if hasattr(one[name], "full_tensor") else one[name]
            assert torch.equal(held, value), name
    return drops[0]


def replace(rank):
    """Sharing 2 or 4 ways keeps the sums of equal data exact, so that all bits can be compared."""
    for init in ("normal", "fan_in", "layer", "split"):
        run_together(rank, DropInConfig(init=init, **EVENTFUL))
    for criterion in ("utility", "random", "dormant"):
        run_together(rank, DropInConfig(criterion=criterion, **EVENTFUL))
    run_together(rank, DropInConfig(outgoing="zero", **EVENTFUL))
    run_together(rank, DropInConfig(outgoing="keep", **EVENTFUL), optimizer=torch.optim.RMSprop)
    run_together(rank, DropInConfig(synaptic_lr=0.05, **EVENTFUL), optimizer=torch.optim.ASGD)


def grow(rank):
    for extra, init in itertools.product((6, -4), ("layer", "split")):
        schedule = OneOff(0.3, before=0, after=extra)
        dropin = run_together(rank, DropInConfig(init=init, extra_neurons=schedule, **EVENTFUL | {"max_fraction": 0.0}))
        assert int(dropin.statistics[0].active.sum()) == 11 + extra


def shard_inputs(model, mesh):
    """Along the inputs, where every process holds a part of each neuron."""
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(1) if p.ndim > 1 else None)


def replace_along_the_other_dimension(rank):
    def even():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))

    for init in ("normal", "split"):
        run_together(rank, DropInConfig(init=init, **EVENTFUL), shard=shard_inputs, build=even)


def act_on_equal_weights(rank):
    """Whatever the number of processes, one event does the same to the same weights."""
    for init in ("normal", "layer", "split"):
        whole, sharded = network(3), network(3)
        config = DropInConfig(init=init, **EVENTFUL)
        drops = [DropIn(model, config) for model in (sharded, whole)]
        fully_shard(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        for dropin in drops:
            for statistics in dropin.statistics:
                generator = torch.Generator().manual_seed(1)
                statistics.averages.copy_(torch.rand(statistics.averages.shape, generator=generator))
                statistics.weight.fill_(1.0)
            mask = torch.arange(11) % 3 == 1
            with CommDebugMode() as seen:
                dropin.apply([Decision(Action.REPLACE, mask)] * 3)
            counts = {str(operation): count for operation, count in seen.get_comm_counts().items()}
            assert all("all_reduce" in name or "allreduce" in name or "gather" in name for name in counts), counts
        for got, want in zip(whole_weights(sharded), whole_weights(whole), strict=True):
            assert torch.equal(got, want)


def count(rank):
    """One collective for each step, and three or four more for each event, whatever the number of layers."""
    for layers, criterion in itertools.product((1, 4), ("contribution", "utility")):
        model = network(layers)
        dropin = DropIn(model, DropInConfig(criterion=criterion, **EVENTFUL))
        for layer in model:
            if isinstance(layer, nn.Sequential):
                fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        optimizer = NeuroPlastic(model.parameters(), lr=1e-2)
        counted = []
        for step in range(6):
            backward(model, step, rank)
            optimizer.step()
            optimizer.zero_grad()
            with CommDebugMode() as seen:
                dropin.step(optimizer)
            counted.append(seen.get_total_counts())
        event = 5 if criterion == "utility" else 4  # which needs the outgoing weights of every neuron
        assert counted[2:] == [1, event, 1, event]


def agree_with_ddp(rank):
    """On other data for each process."""
    config = DropInConfig(synaptic_lr=0.01, **EVENTFUL)
    models = [network(2), network(2)]
    drops = [DropIn(model, config) for model in models]
    fully_shard(models[0], mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    wrapped = [models[0], DistributedDataParallel(models[1])]
    optimizers = [NeuroPlastic(model.parameters(), lr=1e-2) for model in models]
    for step in range(200):
        for model, one, dropin in zip(wrapped, optimizers, drops, strict=True):
            backward(model, step, rank)
            one.step()
            one.zero_grad()
            dropin.step(one)
        every = [torch.empty(0)] * dist.get_world_size()
        mine = torch.cat([known.replaced.view(1) for known in drops[0].watched] + [drops[0]._all.age])
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        assert all(torch.equal(mine, other) for other in every)
        assert all(torch.equal(a, b) for a, b in zip(drops[0].replaced, drops[1].replaced, strict=True)), step
    assert drops[0].events == 100
    for got, want in zip(whole_weights(models[0]), whole_weights(models[1]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def hybrid(rank):
    """Replicas of shards (HSDP)."""
    whole, sharded = network(), network()
    config = DropInConfig(init="layer", **EVENTFUL)
    drops = [DropIn(model, config) for model in (sharded, whole)]
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard")))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (sharded, whole)]
    for step in range(8):
        for model, one, dropin in zip((sharded, whole), optimizers, drops, strict=True):
            backward(model, step)
            one.step()
            one.zero_grad()
            dropin.step(one)
    assert torch.equal(drops[0].replaced[0], drops[1].replaced[0])
    for got, want in zip(whole_weights(sharded), whole_weights(whole), strict=True):
        assert torch.equal(got, want)


def audio_models(rank):
    """Layer by layer, as accelerate shards them."""
    for family in ("wav2vec2", "ast"):
        whole = tiny_model(family)
        sharded = copy.deepcopy(whole)
        config = DropInConfig(extra_neurons=OneOff(0.3, before=0, after=3), **EVENTFUL)
        drops = [DropIn(model, config, total_steps=6) for model in (sharded, whole)]
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for module in list(sharded.modules()):
            if type(module).__name__ in ("Wav2Vec2EncoderLayer", "ASTLayer"):
                fully_shard(module, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        optimizers = [NeuroPlastic(model.parameters(), lr=1e-3) for model in (sharded, whole)]
        for step in range(6):
            batch = tiny_batch(family, seed=step)
            for model, one, dropin in zip((sharded, whole), optimizers, drops, strict=True):
                torch.manual_seed(step)
                model(**batch).loss.backward()
                one.step()
                one.zero_grad()
                dropin.step(one)
        assert drops[0].events == drops[1].events > 0
        for ours, theirs in zip(drops[0].watched, drops[1].watched, strict=True):
            assert torch.equal(ours.replaced, theirs.replaced)
            assert torch.equal(ours.statistics.active, theirs.statistics.active)
        for got, want in zip(whole_weights(sharded), whole_weights(whole), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def refuse(rank):
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))

    def after(shard, config=None, optimizer=torch.optim.AdamW, build=network, x=6):
        model = build()
        dropin = DropIn(model, config or DropInConfig(**EVENTFUL))
        shard(model)
        one = optimizer(model.parameters(), lr=1e-2)
        model(torch.randn(4, x)).square().mean().backward()
        before = [weight.clone() for weight in whole_weights(model)]
        try:
            dropin.step(one)
        finally:
            assert all(torch.equal(a, b) for a, b in zip(whole_weights(model), before, strict=True))

    def shards(model):
        fully_shard(model, mesh=mesh)

    with pytest.raises(TypeError, match=r"freeze_existing=True works through gradients of whole weights"):
        after(shards, DropInConfig(freeze_existing=True, **EVENTFUL))
    with pytest.raises(TypeError, match=r"8-bit optimizer state"):
        after(shards, optimizer=lambda params, lr: NeuroPlastic(params, lr=lr, state_bits=8))
    chain = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    with pytest.raises(TypeError, match=r"no feed-forward layer of Linears by itself"):
        after(shards, build=lambda: nn.Sequential(*chain))

    def tensor_parallel(model):
        parallelize_module(model, mesh, {"2.0": ColwiseParallel(), "2.2": RowwiseParallel()})

    def even():
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)))

    with pytest.raises(TypeError, match=r"the neurons of '2.0' are split over processes by tensor parallelism"):
        after(tensor_parallel, build=even)
    model = network()
    fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match=r"make the DropIn, and room for growth, before the model is sharded"):
        DropIn(model)
    for change in (lambda: reserve(model, 2), lambda: compact(model)):
        with pytest.raises(TypeError, match=r"before the model is sharded"):
            change()


WORK = {
    2: (replace, grow, replace_along_the_other_dimension, act_on_equal_weights, count, audio_models, refuse),
    3: (act_on_equal_weights,),
    4: (act_on_equal_weights, hybrid),
}


@pytest.mark.parametrize(
    ("processes", "works"), [*WORK.items(), (2, (agree_with_ddp,))], ids=["two", "three", "four", "beside ddp"]
)
def test_shards(processes, works):
    run_in_processes(processes, *works)
