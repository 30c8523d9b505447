"""One step of synaptic scaling in all sites of a wav2vec2-base: fused beside reference."""

from functools import partial
from typing import Any

import torch
from neuron_reinit import NEURONS, SITES, WIDTH, times

from neuroplastic_kernels import synaptic_scale

RATE, SCALE_RANGE = 1e-3, (0.1, 2.0)


def measure(target: float | str, device: str, rounds: int) -> list[dict[str, Any]]:
    weights = [torch.randn(NEURONS, WIDTH, device=device) for _ in range(SITES)]
    firsts = [index * NEURONS for index in range(SITES)]
    scale, average, weight = (torch.rand(SITES * NEURONS, device=device) + 0.5 for _ in range(3))
    active = torch.ones(SITES * NEURONS, dtype=torch.bool, device=device)
    workspace: dict[Any, Any] = {}

    def step(backend: str) -> None:
        synaptic_scale(
            weights,
            firsts,
            scale,
            average,
            weight,
            active,
            rate=RATE,
            target=target,
            scale_range=SCALE_RANGE,
            workspace=workspace,
            backend=backend,
        )

    case = {
        "operation": "synaptic_scale",
        "neurons": SITES * NEURONS,
        "target": target,
        "megabytes": 2 * sum(rows.nbytes for rows in weights) / 1e6,
    }
    backends = ("reference", "fused") if device == "cuda" else ("reference",)
    return [{**case, "form": form, **times(partial(step, form), device, rounds)} for form in backends]


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """All rows; `quick` takes fewer rounds."""
    return [row for target in ("layer", 0.5) for row in measure(target, device, rounds=5 if quick else 25)]
