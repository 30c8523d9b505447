"""Two ranks decide alike, and as one rank would with both ranks' samples."""

from functools import partial

import pytest
import torch
from processes import needs_gloo, run_in_processes
from tiny import tiny_batch, tiny_model
from torch.nn.parallel import DistributedDataParallel

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic

CONFIG = DropInConfig(interval=2, maturity=1, max_fraction=0.2, threshold=0.9, stop=None, synaptic_lr=0.01)
STEPS = 6


def _train(rank, world, family):
    model = tiny_model(family)
    dropin = DropIn(model, CONFIG)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = NeuroPlastic(model.parameters(), lr=1e-3)
    ages = []
    for seed in range(STEPS):
        batch = tiny_batch(family, 4, seed=seed)
        share = {name: value[rank * 4 // world : (rank + 1) * 4 // world] for name, value in batch.items()}
        wrapped(**share).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
        ages.append([known.age.tolist() for known in dropin.statistics])
    averages = [known.averages.clone() for known in dropin.statistics]
    return {
        "averages": averages,
        "ages": ages,
        "weights": [p.detach().clone() for p in model.parameters()],
        "replaced": dropin.replaced,
    }


def _rank(family, folder, rank):
    torch.save(_train(rank, 2, family), f"{folder}/{rank}.pt")


@needs_gloo
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_two_ranks_are_one(family, tmp_path):
    run_in_processes(2, partial(_rank, family, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = _train(0, 1, family)
    assert sum(int(count) for count in alone["replaced"]) > 0
    assert first["ages"] == second["ages"] == alone["ages"]
    for a, b, c in zip(first["averages"], second["averages"], alone["averages"], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-2, atol=1e-6)
    for a, b, c in zip(first["weights"], second["weights"], alone["weights"], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-4)
