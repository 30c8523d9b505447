"""All ranks decide alike, and end together."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, case = dist.get_rank(), sys.argv[1]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
dropin = DropIn(model, DropInConfig(interval=2, maturity=0, max_fraction=0.3, threshold=float("inf"), stop=None))
wrapped = DistributedDataParallel(model)
optimizer = NeuroPlastic(model.parameters(), lr=1e-2)
generator = torch.Generator().manual_seed(rank)
for step in range(200):
    wrapped(torch.randn(8, 6, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if rank == 1 and (case, step) in (("first", 0), ("later", 101)):
        optimizer.state[model[0].weight]["m"] = torch.zeros(4, 15)
    dropin.step(optimizer)
    weights = [torch.empty(0)] * dist.get_world_size()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    assert all(torch.equal(mine, other) for other in every), f"ranks differ after step {step}"
sys.stdout.write(f"events {dropin.events}\\n")
sys.stdout.flush()
dist.barrier()
os._exit(0)  # gloo's threads now and then do not survive the end of Python
"""


def launch(case, processes, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(script), case]
    root = Path(__file__).parents[2]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, cwd=root)
    return done, time.perf_counter() - start


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_that_see_other_data_keep_the_same_bits(processes, tmp_path):
    done, _ = launch("well", processes, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("events 100") == processes


@pytest.mark.parametrize(("case", "words"), [("first", "DropIn stops on every rank, because of rank 1"), ("later", "")])
def test_a_rank_that_fails_ends_all_with_its_reason(case, words, tmp_path):
    done, seconds = launch(case, 2, tmp_path)
    assert done.returncode != 0
    assert "optimizer state 'm' of NeuroPlastic has shape (4, 15)" in done.stderr
    assert words in done.stderr
    assert seconds < 60
