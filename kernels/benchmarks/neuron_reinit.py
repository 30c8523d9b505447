"""Rebirth of neurons in all sites of a wav2vec2-base, with and without optimizer state: fused beside reference.

Every optimizer keeps its state, and a fused call its table, between the calls measured; "fused, first call" has none yet.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from plasticity_step import synchronize, timed
from torch import Tensor

from neuroplastic_kernels import neuron_reinit
from neuroplastic_kernels.neuron_reinit.neurons import GROUP, Incoming, NeuronTensors, StateSlice, templates

SITES, WIDTH, NEURONS = 12, 768, 3072
FILLS: dict[str, tuple[Any, ...]] = {  # of an optimizer's state, per parameter
    "none": (),
    "SGD": ("zero",),
    "AdamW": ("zero", "mean"),
    "NeuroPlastic, trace": ("mean", "zero", "mean"),
}
WARMUP = 3
BUSY_CYCLES = 20_000_000  # long enough for the host to queue one call behind it


def site(index: int, share: float, state: str, device: str) -> NeuronTensors:
    """A site of random weights; `share` of its neurons are chosen. state: a key of FILLS."""
    up, down = torch.randn(NEURONS, WIDTH, device=device), torch.randn(WIDTH, NEURONS, device=device)
    up_bias, down_bias = torch.randn(NEURONS, device=device), torch.randn(WIDTH, device=device)
    mask = (torch.rand(NEURONS, generator=torch.Generator().manual_seed(index)) < share).to(device)
    slices = tuple(
        StateSlice(torch.rand_like(weight), dim, fill)
        for weight, dim in ((up, 0), (up_bias, 0), (down, 1))
        for fill in FILLS[state]
    )
    return NeuronTensors(
        incoming=(Incoming(up, up_bias),),
        down_weight=down,
        down_bias=down_bias,
        mask=mask,
        survivors=~mask,
        mean_output=torch.zeros(NEURONS, device=device),
        donors=None,
        state=slices,
        site=index,
    )


def touched_bytes(tensors: NeuronTensors, init: str) -> int:
    """What a call cannot do without: the models it reads once, the chosen entries it writes, and reads to fold."""

    def size(tensor: Tensor, dim: int, neurons: Tensor) -> int:
        if dim == tensor.ndim - 1:  # neighbours share 32 bytes, the least that a GPU's memory gives
            neurons = neurons.view(-1, GROUP).any(1).repeat_interleave(GROUP)
        return int(neurons.sum()) * (tensor.nbytes // tensor.shape[dim])

    if not tensors.mask.any():
        return 0
    chosen, modelled = tensors.mask, templates(tensors.survivors)
    ups = [part for up in tensors.incoming for part in up if part is not None]
    total = sum(size(part, 0, chosen) for part in ups)
    total += sum(size(part, 0, modelled) for part in ups) if init == "layer" else 0
    if tensors.down_weight is not None:
        total += 2 * size(tensors.down_weight, 1, chosen)
    total += sum(size(state, dim, chosen) for state, dim, _ in tensors.state)
    return total + sum(size(state, dim, modelled) for state, dim, fill in tensors.state if fill == "mean")


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


def times(action: Callable[[], Any], device: str, rounds: int) -> dict[str, float | None]:
    """Medians of a call: until its work is done, until it returns, and on the device alone."""
    for _ in range(WARMUP):
        action()
    totals, hosts = zip(*(timed(action, device) for _ in range(rounds)), strict=True)
    on_device = [seconds for _ in range(rounds) if (seconds := device_seconds(action, device)) is not None]
    return {
        "ms": statistics.median(totals) * 1e3,
        "host_ms": statistics.median(hosts) * 1e3,
        "device_us": statistics.median(on_device) * 1e6 if on_device else None,
    }


def forms(sites: list[NeuronTensors], init: str, device: str) -> dict[str, Callable[[], None]]:
    """Name -> a call."""
    workspace: dict[Any, Any] = {}
    calls: dict[str, Callable[[], None]] = {"reference": lambda: neuron_reinit(sites, init=init, backend="reference")}
    if device == "cuda":
        calls["fused"] = lambda: neuron_reinit(sites, init=init, backend="fused", workspace=workspace)
        calls["fused, first call"] = lambda: neuron_reinit(sites, init=init, backend="fused")
    return calls


def measure(share: float, state: str, init: str, device: str, rounds: int) -> list[dict[str, Any]]:
    sites = [site(index, share, state, device) for index in range(SITES)]
    case = {
        "operation": "neuron_reinit",
        "neurons": SITES * NEURONS,
        "chosen": sum(int(tensors.mask.sum()) for tensors in sites),
        "state": state,
        "init": init,
        "megabytes": sum(touched_bytes(tensors, init) for tensors in sites) / 1e6,
    }
    calls = forms(sites, init, device)
    return [{**case, "form": form, **times(action, device, rounds)} for form, action in calls.items()]


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """All rows; `quick` takes AdamW's state, one rule and fewer rounds."""
    cases = [(share, "AdamW", "normal") for share in (0.0, 0.01)]
    if not quick:
        cases += [(0.01, state, "normal") for state in FILLS if state != "AdamW"]
        cases += [(share, "NeuroPlastic, trace", "layer") for share in (0.0, 0.01)]
    return [row for case in cases for row in measure(*case, device, rounds=5 if quick else 25)]
