"""What a NeuroPlastic step did, recomputed on request from the state it left and the gradients it used."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from neuroplastic_kernels.reference.plasticity_formulas import (
    Hyperparameters,
    NeuronFactor,
    fill_buffers,
    homeostasis,
    inverse_means,
    modulate,
    moment,
    scale_neurons,
    signal_sums,
)
from neuroplastic_kernels.reference.plasticity_step import one_piece


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


def measure(param: Tensor, state: dict[str, Tensor], neurons: NeuronFactor | None, hyper: Hyperparameters) -> Tensor:
    """Of one tensor: sum of alpha, elements at the lower and at the upper bound, ||u||^2, ||g||^2; float32 [5]."""
    assert param.grad is not None
    piece = one_piece(param, param.grad, state["trace"], state["exp_avg"], state["exp_avg_sq"])
    now = moment(state["step"].item(), hyper)
    fill_buffers(piece, hyper, now)
    inverse = inverse_means([signal_sums(piece)], param.numel(), hyper.eps)
    norms = modulate(piece, inverse, hyper, now)
    norm = norms[1]
    if neurons is not None:
        scale_neurons(piece.update, neurons)
        norm = torch.linalg.vector_norm(piece.update)
    norm = norm * homeostasis([norms], param.numel(), hyper) * now.gain
    alpha = piece.memory if hyper.strength else torch.ones_like(piece.memory)
    lower, upper = alpha.new_tensor(hyper.alpha_range).mul_(hyper.strength).add_(1 - hyper.strength)
    gradient_norm = torch.linalg.vector_norm(param.grad.to(alpha.dtype))
    figures = (alpha.sum(), (alpha <= lower).sum(), (alpha >= upper).sum(), norm.square(), gradient_norm.square())
    return torch.stack([figure.to(torch.float32) for figure in figures])
