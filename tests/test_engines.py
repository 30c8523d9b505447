"""What training engines make of weights: right under NeuroPlastic and DropIn, or refused by name before the first step."""

import copy
import tempfile
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, run_in_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic

EAGER = DropInConfig(interval=1, maturity=0, max_fraction=0.3, threshold=float("inf"), stop=None)
BASES = [{"base": "adamw"}, {"base": "momentum"}, {"base": "gradient"}, {"base": "adamw", "max_grad_norm": 0.1}]


def network():
    """The neurons are those of layer 1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def batch(step, rank=0, size=8):
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def whole(model):
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def require_refusal(attempt, model, words):
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=words):
        attempt()
    assert all(map(torch.equal, before, (p.detach() for p in model.parameters())))


def flat_vectors_are_refused(rank):
    """FSDP1: whether the optimizer is made before or after the model is wrapped."""
    for original, strategy in (
        (False, "FULL_SHARD"),
        (True, "FULL_SHARD"),
        (True, "SHARD_GRAD_OP"),
        (True, "NO_SHARD"),
    ):
        options = {"use_orig_params": original, "device_id": torch.device("cpu")}
        options["sharding_strategy"] = ShardingStrategy[strategy]
        model = network()
        early = NeuroPlastic(model.parameters())
        model = FullyShardedDataParallel(model, **options)
        require_refusal(
            lambda m=model: NeuroPlastic(m.parameters()), model, r"vector of FSDP1.*fully_shard.*strength=0"
        )
        if original:
            model(batch(0)).square().sum().backward()
            require_refusal(early.step, model, r"vector of FSDP1.*fully_shard.*strength=0")
        watched = network()
        DropIn(watched, EAGER)
        watched = FullyShardedDataParallel(watched, **options)
        with pytest.raises(TypeError, match=r"a weight of '1' is a part of a vector of FSDP1.*DDP"):
            watched(batch(0))


def the_bare_base_takes_any_slices(rank):
    """FSDP1 with strength 0 is AdamW to the last bits; plasticity that is switched on later is refused."""
    for original in (False, True):
        models = []
        for make in (lambda p: NeuroPlastic(p, lr=0.05, strength=0.0, weight_decay=0.1), torch.optim.AdamW):
            model = FullyShardedDataParallel(network(), use_orig_params=original, device_id=torch.device("cpu"))
            optimizer = make(model.parameters())
            for group in optimizer.param_groups:
                group.update(lr=0.05, weight_decay=0.1)
            for step in range(4):
                model(batch(step, rank)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            models.append((model, optimizer))
        for got, want in zip(*(model.parameters() for model, _ in models), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        model, optimizer = models[0]
        optimizer.param_groups[0]["strength"] = 1.0
        require_refusal(optimizer.step, model, "vector of FSDP1")
        optimizer.param_groups[0].update(strength=0.0, max_grad_norm=1.0)
        require_refusal(optimizer.step, model, "vector of FSDP1")


PLANS = {
    "columns and rows": {"1": ColwiseParallel(), "3": RowwiseParallel()},
    "rows": {"3": RowwiseParallel(input_layouts=Replicate())},
    "gathered columns": {"1": ColwiseParallel(output_layouts=Replicate())},
    "distributed outputs": {"1": ColwiseParallel(use_local_output=False), "3": RowwiseParallel()},
    "sequence": {
        "0": SequenceParallel(sequence_dim=0, use_local_output=True),
        "1": ColwiseParallel(input_layouts=Shard(0)),
        "3": RowwiseParallel(output_layouts=Shard(0)),
    },
}


def split_layers_train_like_whole_ones(rank):
    """Tensor and sequence parallelism, where a rank sees its part of the batch, and the norm's gradients are summed."""
    mesh = init_device_mesh("cpu", (2,))
    for plan, options in ((plan, options) for plan in PLANS for options in BASES):
        plain, split = network(), network()
        parallelize_module(split, mesh, copy.deepcopy(PLANS[plan]))
        optimizers = [NeuroPlastic(each.parameters(), lr=0.02, **options) for each in (plain, split)]
        for step in range(4):
            for model, optimizer in zip((plain, split), optimizers, strict=True):
                part = batch(step).chunk(2)[rank] if model is split and plan == "sequence" else batch(step)
                model(part).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        for got, want in zip(whole(split), whole(plain), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6, msg=lambda t, c=(plan, options): f"{c}: {t}")


def split_neurons_are_refused(rank):
    mesh = init_device_mesh("cpu", (2,))
    for plan, styles in PLANS.items():
        model = network()
        DropIn(model, EAGER)
        parallelize_module(model, mesh, copy.deepcopy(styles))
        part = batch(0).chunk(2)[rank] if plan == "sequence" else batch(0)
        with pytest.raises(TypeError, match=r"neurons of '1' are split .* by tensor parallelism.*DDP"):
            model(part)
        with pytest.raises(TypeError, match=r"'1' is sharded, or flattened .*DDP"):
            DropIn(parallelize_module(network(), mesh, copy.deepcopy(styles)), EAGER)


def parts_of_a_sequence_are_one(rank):
    """Context parallelism: each rank has some of the tokens, and gradients are averaged. Decisions are those on all tokens."""
    ends = []
    for split in (False, True):
        model = network()
        dropin, optimizer = DropIn(model, EAGER), NeuroPlastic(model.parameters(), lr=0.02)
        for step in range(3):
            tokens = batch(step, size=8).view(2, 4, 6)
            tokens = tokens.chunk(2, dim=1)[rank] if split else tokens
            model(tokens).square().mean().backward()
            for p in model.parameters() if split else ():
                dist.all_reduce(p.grad)
                p.grad /= 2
            optimizer.step()
            optimizer.zero_grad()
            with nullcontext() if split else patch.object(dist, "get_world_size", lambda: 1):
                dropin.step(optimizer)
        ends.append((whole(model), dropin.statistics[0]))
    (plain, seen), (parts, of_parts) = ends
    for got, want in zip(parts, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(of_parts.gradient, seen.gradient, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(of_parts.activity, seen.activity, rtol=1e-5, atol=1e-8)


def other_layers_may_be_split(rank):
    """Decisions are those of one process; of |dz|, of which every rank sees the same, the mean is over ranks as well."""
    mesh, ends = init_device_mesh("cpu", (2,)), []
    for split in (False, True):
        model = nn.Sequential(network(), nn.Linear(4, 6))
        dropin, optimizer = DropIn(model, EAGER), NeuroPlastic(model.parameters(), lr=0.02)
        if split:
            parallelize_module(model, mesh, {"1": ColwiseParallel(output_layouts=Replicate())})
            optimizer = NeuroPlastic(model.parameters(), lr=0.02)
        for step in range(3):
            model(batch(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            with nullcontext() if split else patch.object(dist, "get_world_size", lambda: 1):
                dropin.step(optimizer)
        ends.append((whole(model), dropin.statistics[0]))
    (plain, seen), (parts, of_parts) = ends
    for got, want in zip(parts, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(of_parts.gradient * 2, seen.gradient, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(of_parts.activity, seen.activity, rtol=1e-5, atol=1e-8)


def plans_of_transformers(rank):
    """A Llama whose projections from_pretrained has split."""
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from transformers.distributed import DistributedConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32, "pad_token_id": 0}
    shape = LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as own:
        LlamaForSequenceClassification(shape).save_pretrained(own)  # writes on the first rank only
        folders = [own]
        dist.broadcast_object_list(folders)
        dist.barrier()
        plain = LlamaForSequenceClassification.from_pretrained(folders[0], dtype=torch.float64)
        plan = DistributedConfig(tp_size=2, tp_plan="auto")
        split = LlamaForSequenceClassification.from_pretrained(folders[0], dtype=torch.float64, distributed_config=plan)
        dist.barrier()
    assert any(hasattr(p, "device_mesh") for p in split.parameters())
    with pytest.raises(TypeError, match=r"layers.0.mlp' is sharded, or flattened .*DDP"):
        DropIn(split, EAGER)
    for model in (plain, split):
        optimizer = NeuroPlastic(model.parameters(), lr=0.01)
        for step in range(4):
            tokens = torch.randint(1, 32, (4, 6), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens[:, 0] % 2).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for got, want in zip(whole(split), whole(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


CASES = [
    plans_of_transformers,
    other_layers_may_be_split,
    flat_vectors_are_refused,
    the_bare_base_takes_any_slices,
    split_layers_train_like_whole_ones,
    split_neurons_are_refused,
    parts_of_a_sequence_are_one,
]


@needs_gloo
@pytest.mark.parametrize("case", CASES)
def test_two_processes(case):
    run_in_processes(2, case)
