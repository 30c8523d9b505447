"""Functions run in several CPU processes at once, which find each other over gloo."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


def _run(rank, checks, processes, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    for check in checks:
        check(rank)
    dist.barrier()
    os._exit(0)  # gloo's threads now and then do not survive the end of Python


def run_in_processes(processes, *checks):
    """Each check, a function of a module, takes the rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_run, args=(checks, processes, port), nprocs=processes)
