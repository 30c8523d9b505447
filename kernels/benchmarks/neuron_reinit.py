"""Rebirth of neurons in all sites of a wav2vec2-base, with and without optimizer state: fused beside reference."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from plasticity_step import synchronize, timed

from neuroplastic_kernels import neuron_reinit
from neuroplastic_kernels.neurons import NeuronTensors, StateSlice

SITES, WIDTH, NEURONS = 12, 768, 3072
WARMUP = 3
BUSY_CYCLES = 20_000_000  # long enough for the host to queue one call behind it


def site(index: int, share: float, state: str, device: str) -> NeuronTensors:
    """A site of random weights; `share` of its neurons are chosen. state: "none", "zero" or "AdamW"."""
    shapes = {
        "up_weight": (NEURONS, WIDTH),
        "up_bias": (NEURONS,),
        "down_weight": (WIDTH, NEURONS),
        "down_bias": (WIDTH,),
    }
    weights = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(index)
    mask = (torch.rand(NEURONS, generator=generator) < share).to(device)
    fills: dict[str, tuple[Any, ...]] = {"none": (), "zero": ("zero", "zero"), "AdamW": ("zero", "mean")}
    neurons_first = {"up_weight": 0, "up_bias": 0, "down_weight": 1}
    slices = tuple(
        StateSlice(torch.rand_like(weights[name]), dim, fill)
        for name, dim in neurons_first.items()
        for fill in fills[state]
    )
    return NeuronTensors(
        **weights, mask=mask, survivors=~mask, mean_output=torch.zeros(NEURONS, device=device), donors=None, state=slices,
        site=index,
    )  # fmt: skip


def device_seconds(action: Callable[[], Any], device: str) -> float | None:
    """Time the device spends on one call, its queue being full; None on a CPU."""
    if device != "cuda":
        return None
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    start.record()
    action()
    end.record()
    synchronize(device)
    return start.elapsed_time(end) / 1e3


def measure(share: float, state: str, init: str, device: str, rounds: int) -> list[dict[str, Any]]:
    sites = [site(index, share, state, device) for index in range(SITES)]
    chosen = sum(int(tensors.mask.sum()) for tensors in sites)
    rows = []
    for backend in ("reference", "fused") if device == "cuda" else ("reference",):

        def action(backend: str = backend) -> None:
            neuron_reinit(sites, init=init, backend=backend)

        for _ in range(WARMUP):
            action()
        totals, hosts = zip(*(timed(action, device) for _ in range(rounds)), strict=True)
        on_device = [seconds for _ in range(rounds) if (seconds := device_seconds(action, device)) is not None]
        rows.append({
            "operation": "neuron_reinit",
            "neurons": SITES * NEURONS,
            "chosen": chosen,
            "state": state,
            "init": init,
            "form": backend,
            "ms": statistics.median(totals) * 1e3,
            "host_ms": statistics.median(hosts) * 1e3,
            "device_us": statistics.median(on_device) * 1e6 if on_device else None,
        })  # fmt: skip
    return rows


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """All rows; `quick` takes AdamW's state, the default rule and fewer rounds."""
    cases = [(share, "AdamW", "normal") for share in (0.0, 0.01)]
    if not quick:
        cases += [(share, state, "normal") for state in ("none", "zero") for share in (0.0, 0.01)]
        cases += [(0.01, "none", "layer")]
    return [row for case in cases for row in measure(*case, device, rounds=5 if quick else 25)]
