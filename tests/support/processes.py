"""Functions run in CPU processes of their own: one, or several that find each other over gloo."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from interpreter import patch_the_language_once

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
FORKED = mp.get_context("forkserver")  # from a process that imports once: an import takes longer than most checks
FORKED.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "transformers.trainer", "processes"]
)


def _run(rank, checks, processes, port):
    torch.set_num_threads(1)
    patch_the_language_once()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    for check in checks:
        check(rank)
    dist.barrier()
    os._exit(0)  # gloo's threads now and then do not survive the end of Python


def run_in_processes(processes, *checks):
    """Each check, a function of a module or a `functools.partial` of one, takes the rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    mp.start_processes(_run, args=(checks, processes, port), nprocs=processes, start_method="forkserver")
