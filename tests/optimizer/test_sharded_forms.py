"""Sharding changes no number: codes, random rounding, factors, skipped steps and clipping, in a fixed number of all-reduces."""

import copy
import importlib.util
import itertools
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, run_in_processes
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import NeuronFactor

pytestmark = needs_gloo
BACKENDS = ("auto", "reference", *(["fused"] if importlib.util.find_spec("triton") else []))
MEASURING = ({"base": "gradient"}, {"base": "adamw", "statistics": "exact"})
SHAPES = [(33, 128), (5, 1024), (1, 4096), (300, 16), (7,), (2, 3, 4)]  # uneven, and with fewer rows than processes


def mesh_of_all():
    return init_device_mesh("cpu", (dist.get_world_size(),))


class Pair:
    """The same parameters whole and sharded, an optimizer over each, and steps with the same gradients.

    placements: of each parameter. groups: into how many groups they are dealt. A gradient of None is left out.
    """

    def __init__(self, placements, shapes=SHAPES, dtype=torch.float32, meshes=None, groups=1, **options):
        self.generator = torch.Generator().manual_seed(0)
        self.meshes, self.placements = meshes or [mesh_of_all()] * len(shapes), placements
        starts = [self.draw(shape, dtype) for shape in shapes]
        self.whole = [torch.nn.Parameter(start.clone()) for start in starts]
        self.sharded = [torch.nn.Parameter(tensor) for tensor in self.distributed(starts)]
        self.optimizers = [
            NeuroPlastic([{"params": params[first::groups]} for first in range(groups)], **{"lr": 1e-2, **options})
            for params in (self.whole, self.sharded)
        ]

    def draw(self, shape, dtype):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def distributed(self, tensors):
        return [
            distribute_tensor(tensor, mesh, [*[Replicate()] * (mesh.ndim - 1), placement])
            for tensor, mesh, placement in zip(tensors, self.meshes, self.placements, strict=True)
        ]

    def step(self, change=lambda grads: grads):
        grads = change([self.draw(p.shape, p.dtype) for p in self.whole])
        for p, q, grad, shard in zip(self.whole, self.sharded, grads, self.distributed(grads), strict=True):
            p.grad, q.grad = grad, shard
        for optimizer in self.optimizers:
            optimizer.step()

    def tensors(self):
        """Pairs of whole and gathered tensors, with state."""
        whole, sharded = (optimizer.state_dict()["state"] for optimizer in self.optimizers)
        for p, q, number in zip(self.whole, self.sharded, range(len(self.whole)), strict=True):
            yield p.detach(), q.detach().full_tensor()
            for name, value in whole.get(number, {}).items():
                other = sharded[number][name]
                yield value, gathered(other)

    def run(self, steps=3):
        for _ in range(steps):
            self.step()
        return self

    def assert_close(self, tolerance):
        for want, got in self.tensors():
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def same_codes(rank):
    """Of 8-bit state, with scales, by the reference and the kernels. strength 0: sums of another order differ in a last bit."""
    for backend, trace in itertools.product(("reference", *BACKENDS[2:]), ("rms", "trace")):
        options = {"strength": 0.0, "state_bits": 8, "backend": backend, "activity": trace}
        pair = Pair([Shard(0)] * len(SHAPES), **options).run()
        assert ["scales" in state for state in pair.optimizers[1].state.values()] == [True] * 4 + [False] * 2
        pair.assert_close(0)
    Pair([Replicate()] * len(SHAPES), state_bits=8, strength=0.0).run().assert_close(0)
    pair = Pair([Shard(0)] * len(SHAPES), state_bits=8).run(2)
    for want, got in zip(pair.whole, pair.sharded, strict=True):
        torch.testing.assert_close(got.full_tensor(), want, rtol=1e-3, atol=1e-3)


def same_rounding(rank):
    """Of bfloat16 parameters, by every form."""
    for backend in BACKENDS:
        options = {
            "strength": 0.0,
            "stochastic_rounding": True,
            "backend": backend,
            "lr": 1e-3,
            "dtype": torch.bfloat16,
        }
        Pair([Shard(0)] * len(SHAPES), **options, groups=2).run().assert_close(0)
    Pair([Shard(1)], [(5, 7)], **{**options, "backend": "reference"}).run().assert_close(0)
    Pair([Shard(0)] * len(SHAPES), **{**options, "state_bits": 8, "backend": BACKENDS[-1]}).run().assert_close(0)


def close_when_exact(rank):
    for options, skips, trace in itertools.product(MEASURING, (False, True), (None, "trace")):
        options = {**options, "activity": trace, "skip_nonfinite": skips, "weight_decay": 0.1, "dtype": torch.float64}
        Pair([Shard(0)] * len(SHAPES), **options, groups=2).run(4).assert_close(1e-11)
    Pair([Shard(0)] * len(SHAPES), **options, backend="reference").run(4).assert_close(1e-11)
    Pair([Shard(0)] * len(SHAPES), base="gradient", backend=BACKENDS[-1]).run(4).assert_close(1e-5)


def skip_together(rank):
    """A gradient that is not finite in one process's shard."""

    def spoil(grads):
        for place, bad in ((0, torch.nan), (1, torch.inf), (4, -torch.inf)):
            grads[place].view(-1)[-1] = bad
        return grads

    kinds = ({}, {"max_grad_norm": 0.5}, {"strength": 0.0}, *MEASURING)
    for backend, options in itertools.product(BACKENDS, kinds):
        pair = Pair([Shard(0)] * len(SHAPES), skip_nonfinite=True, backend=backend, groups=2, **options).run(1)
        pair.step(spoil)
        pair.run(1)
        pair.assert_close(2e-5)
        for optimizer, params in zip(pair.optimizers, (pair.whole, pair.sharded), strict=True):
            states = [optimizer.state[param] for param in params]
            assert [state["skipped"].item() for state in states] == [1, 1, 0, 0, 1, 0]
            assert [state["step"].item() for state in states] == [2, 2, 3, 3, 2, 3]
        assert torch.isfinite(torch.stack([p.full_tensor().sum() for p in pair.sharded])).all()


def factors_reach_their_neurons(rank):
    for backend, options, dim, placement in itertools.product(
        BACKENDS, ({}, {"base": "gradient"}), (0, -1), (Shard(0), Shard(1))
    ):
        pair = Pair([placement] * 2, [(5, 7), (3, 64)], backend=backend, **options)
        for optimizer, params in zip(pair.optimizers, (pair.whole, pair.sharded), strict=True):
            values = torch.arange(params[0].shape[dim], dtype=torch.float32) / 3
            optimizer.neuron_factors[params[0]] = NeuronFactor(values, dim)
        pair.run()
        pair.assert_close(1e-5)
        first = pair.whole[0].detach().movedim(dim, 0)[0]
        assert torch.equal(first, Pair([placement] * 2, [(5, 7), (3, 64)]).whole[0].detach().movedim(dim, 0)[0])


def clip_together(rank):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        for placement in (Shard(0), Replicate()):
            Pair([placement] * len(SHAPES), max_grad_norm=0.5, dtype=dtype, groups=2).run().assert_close(tolerance)


def an_overflow_changes_nothing(rank):
    for options in ({}, {"skip_nonfinite": True}, *MEASURING):
        pair = Pair([Shard(0)] * len(SHAPES), **options).run(2)
        before = [(want.clone(), got.clone()) for want, got in pair.tensors()]
        for optimizer in pair.optimizers:
            optimizer.found_inf = torch.ones(())
        pair.run(1)
        assert all(
            torch.equal(*each)
            for pairs in zip(before, pair.tensors(), strict=True)
            for each in zip(*pairs, strict=True)
        )


def meet_without_gradients(rank):
    """Where one process lacks gradients its shards stay, and nobody waits for ever."""
    for options in ({}, {"skip_nonfinite": True, "max_grad_norm": 1.0}, *MEASURING):
        for lacking in ({0}, {0, 2}, {0, 1, 2, 3}):
            pair = Pair([Shard(0)] * 4, SHAPES[:4], groups=2, **options).run(2)
            before = [p.to_local().clone() for p in pair.sharded]
            for number, (p, grad) in enumerate(zip(pair.sharded, pair.distributed(pair.whole), strict=True)):
                p.grad = None if rank == 1 and number in lacking else grad.detach()
            pair.optimizers[1].step()
            moved = [bool((p.to_local() != old).any()) for p, old in zip(pair.sharded, before, strict=True)]
            stays = [(rank == 1 and number in lacking) or not old.numel() for number, old in enumerate(before)]
            assert moved == [not stay for stay in stays]
            pair.optimizers[1].state_dict()  # waits for the sums
            states = [pair.optimizers[1].state[param] for param in pair.sharded]
            for number, grad in enumerate(pair.whole):
                if (
                    number in lacking and rank != 1 and "max_grad_norm" not in options
                ):  # |g| of the other processes alone
                    chunks = [chunk.abs().sum() for chunk in grad.detach().chunk(dist.get_world_size())]
                    want = sum(chunks[:1] + chunks[2:])
                    torch.testing.assert_close(states[number]["sums"][1], want, rtol=1e-5, atol=0)
                assert states[number]["sums"].isfinite().all()


def two_meshes(rank):
    """And one that leaves a process out."""
    ranks = list(range(dist.get_world_size()))
    meshes = [DeviceMesh("cpu", ranks), DeviceMesh("cpu", [ranks])] * 2
    for options in ({}, {"max_grad_norm": 0.5, "skip_nonfinite": True}, {"state_bits": 8}, *MEASURING):
        Pair([Shard(0)] * 4, SHAPES[:4], meshes=meshes, groups=2, **options).run().assert_close(
            1e-3 if "state_bits" in options else 2e-5
        )
    pair = Pair([Shard(0)] * 2, SHAPES[:2], meshes=[DeviceMesh("cpu", ranks), DeviceMesh("cpu", [0])]).run()
    torch.testing.assert_close(pair.sharded[0].full_tensor(), pair.whole[0], rtol=1e-5, atol=1e-5)
    if rank == 0:
        torch.testing.assert_close(pair.sharded[1].to_local(), pair.whole[1].detach(), rtol=1e-5, atol=1e-5)


def gathered(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def two_splits_of_the_rows(rank):
    """FSDP over tensor parallelism: codes, rounding, factors and exact sums of a shard of a shard."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    kinds = (
        {"strength": 0.0, "state_bits": 8, "stochastic_rounding": True},
        {"base": "gradient", "skip_nonfinite": True},
    )
    for options, dtype in zip(kinds, (torch.bfloat16, torch.float64), strict=True):
        torch.manual_seed(0)
        whole, model = (torch.nn.Linear(128, 64, bias=False, dtype=dtype) for _ in range(2))
        model.load_state_dict(whole.state_dict())
        model = torch.nn.Sequential(model)
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()})
        fully_shard(model, mesh=mesh["data"])
        params = whole.weight, model[0].weight
        optimizers = [NeuroPlastic([param], lr=0.01, **options) for param in params]
        for optimizer, param in zip(optimizers, params, strict=True):
            optimizer.neuron_factors[param] = NeuronFactor(torch.arange(64) / 32, 0)
        _, starts = compute_local_shape_and_global_offset(params[1].shape, params[1].device_mesh, params[1].placements)
        for _ in range(3):
            grad = torch.randn(64, 128, dtype=dtype)
            own = grad[starts[0] : starts[0] + params[1].to_local().shape[0]].clone()
            like = {"shape": grad.shape, "stride": grad.stride(), "run_check": False}
            whole.weight.grad = grad
            params[1].grad = DTensor.from_local(own, params[1].device_mesh, params[1].placements, **like)
            for optimizer in optimizers:
                optimizer.step()
        tolerance = 0 if "state_bits" in options else 1e-11
        torch.testing.assert_close(params[1].full_tensor(), params[0].detach(), rtol=tolerance, atol=tolerance)
        states = [optimizer.state_dict()["state"][0] for optimizer in optimizers]
        for name, want in states[0].items():
            torch.testing.assert_close(gathered(states[1][name]), want, rtol=tolerance, atol=tolerance)


@contextmanager
def counted():
    """Bytes of each all-reduce."""
    sizes, plain = [], dist.all_reduce

    def counting(tensor, *args, **options):
        sizes.append(tensor.nbytes)
        return plain(tensor, *args, **options)

    dist.all_reduce = counting
    try:
        yield sizes
    finally:
        dist.all_reduce = plain


def count(rank):
    """The same number of all-reduces for any number of tensors and groups, of so many bytes for each tensor."""
    from torch.distributed.tensor.debug import CommDebugMode

    exact = {"statistics": "exact"}
    expected = [
        ({}, torch.float32, [20]),
        ({}, torch.bfloat16, [20]),
        ({"state_bits": 8}, torch.float32, [20]),
        ({}, torch.float64, [40]),
        ({"strength": 0.0}, torch.float32, []),
        (exact, torch.float32, [12, 8]),
        ({"base": "gradient"}, torch.float32, [12, 8]),
        ({"skip_nonfinite": True}, torch.float32, [4, 20]),
        ({"skip_nonfinite": True, "strength": 0.0}, torch.float32, [4]),
        ({"skip_nonfinite": True, **exact}, torch.float32, [4, 12, 8]),
    ]
    for (options, dtype, bytes_each), tensors in itertools.product(expected, (1, 5)):
        for backend in ("auto", "reference"):
            pair = Pair(
                [Shard(0)] * tensors,
                [(6, 16)] * tensors,
                dtype=dtype,
                groups=min(2, tensors),
                backend=backend,
                **options,
            )
            pair.run(2)
            with counted() as sizes, CommDebugMode() as seen:
                pair.optimizers[1].step()
            assert sizes == [each * tensors for each in bytes_each]
            assert seen.get_total_counts() == len(bytes_each), seen.get_comm_counts()
    for options, sizes_of in (({}, [8]), ({"skip_nonfinite": True}, [16 * 5, 4 * 5])):
        pair = Pair([Shard(0)] * 5, [(6, 16)] * 5, groups=2, max_grad_norm=0.5, **options).run(2)
        with counted() as sizes, CommDebugMode() as seen:
            pair.optimizers[1].step()
        assert sizes == [*sizes_of, 20 * 5]
        assert seen.get_total_counts() == len(sizes)


def resume_codes(rank):
    """8-bit state, full and by shards, goes on with the same bits; full it is that of the whole model."""
    for full in (False, True):
        models = [torch.nn.Linear(128, 41, bias=False) for _ in range(3)]
        for model in models[1:]:
            model.load_state_dict(models[0].state_dict())
            fully_shard(model, mesh=mesh_of_all())
        options = {"lr": 0.01, "state_bits": 8, "strength": 0.0}
        whole, sharded, resumed = optimizers = [NeuroPlastic(model.parameters(), **options) for model in models]
        settings = StateDictOptions(full_state_dict=full)

        def step(pairs, number):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(8, 128, generator=generator)
            for model, optimizer in pairs:
                model(x).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()

        pairs = list(zip(models, optimizers, strict=True))
        for number in range(2):
            step(pairs[:2], number)
        saved = copy.deepcopy(get_optimizer_state_dict(models[1], sharded, options=settings))
        if full and rank == 0:
            shapes = {name: tuple(value.shape) for name, value in saved["state"]["weight"].items()}
            assert shapes == {name: tuple(value.shape) for name, value in whole.state[models[0].weight].items()}
        if full:  # one process goes on from what several saved
            alone = torch.nn.Linear(128, 41, bias=False)
            loaded = NeuroPlastic(alone.parameters(), **options)
            set_optimizer_state_dict(alone, loaded, copy.deepcopy(saved), options=settings)
            for name, value in sharded.state[models[1].weight].items():
                assert torch.equal(loaded.state[alone.weight][name], gathered(value))
        models[2].load_state_dict(models[1].state_dict())
        set_optimizer_state_dict(models[2], resumed, saved, options=settings)
        for name, value in sharded.state[models[1].weight].items():
            assert torch.equal(gathered(value), gathered(resumed.state[models[2].weight][name]))
        for number in range(2, 4):
            step(pairs[1:], number)
        assert torch.equal(models[1].weight.full_tensor(), models[2].weight.full_tensor())


def refuse_columns(rank):
    param = torch.nn.Parameter(distribute_tensor(torch.randn(64, 64), mesh_of_all(), [Shard(1)]))
    other = torch.nn.Parameter(torch.randn(4))
    optimizer = NeuroPlastic([other], state_bits=8)
    with pytest.raises(
        ValueError, match=r"parameter 0 of group 1, of shape \(64, 64\), is sharded along dimension 1; .*state_bits=32"
    ):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1
    NeuroPlastic([param], state_bits=32)


def refuse_stripes(rank):
    mesh = mesh_of_all()
    count = mesh.size()
    own = torch.randn(2, 3)
    like = {"shape": (2 * count, 3), "stride": (3, 1), "run_check": False}
    param = torch.nn.Parameter(DTensor.from_local(own, mesh, [_StridedShard(0, split_factor=2)], **like))
    param.grad = DTensor.from_local(own, mesh, param.placements, **like)
    with pytest.raises(RuntimeError, match=r"is split into stripes, .*; redistribute"):
        NeuroPlastic([param]).step()


CHECKS = [
    (same_codes, same_rounding),
    (close_when_exact, clip_together),
    (skip_together, an_overflow_changes_nothing),
    (factors_reach_their_neurons, refuse_columns, refuse_stripes),
    (meet_without_gradients, two_meshes),
    (count, resume_codes),
]


@pytest.mark.parametrize(
    ("checks", "processes"),
    [*((checks, 3) for checks in CHECKS), *((checks, 2) for checks in CHECKS[-2:])],
    ids=lambda value: ", ".join(check.__name__ for check in value) if isinstance(value, tuple) else None,
)
def test_sharding_changes_no_number(checks, processes):
    run_in_processes(processes, *checks)


def test_two_splits_of_the_rows_change_no_number():
    run_in_processes(4, two_splits_of_the_rows)
