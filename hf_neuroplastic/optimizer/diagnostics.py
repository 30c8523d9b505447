"""What a NeuroPlastic step did, recomputed on request from the state it left and the gradients it used."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from neuroplastic_kernels import Hyperparameters, NeuronFactor, measure


@torch.no_grad()
def diagnose(
    stepped: Iterable[tuple[Tensor, dict[str, Tensor], NeuronFactor | None, dict[str, Any]]],
) -> dict[str, Tensor]:
    """Join the measurements of (parameter with gradient, its state, its neurons' factors, its options).

    See `NeuroPlastic.diagnostics`.
    """
    measured, elements = [], 0
    for param, state, neurons, options in stepped:
        measured.append(measure(param, state, neurons, Hyperparameters(**options)))
        elements += param.numel()
    if not measured:
        raise RuntimeError("diagnostics needs the gradients of a step: call it after step() and before zero_grad()")
    device = measured[0].device
    totals = torch.stack([each.to(device) for each in measured]).sum(0)
    alpha, at_lower, at_upper = (totals[:3] / elements).unbind()
    return {
        "alpha_mean": alpha,
        "share_at_lower": at_lower,
        "share_at_upper": at_upper,
        "update_gradient_ratio": (totals[3] / totals[4]).sqrt(),
    }
