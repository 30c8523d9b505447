"""What a step did to one tensor, recomputed from the state it left and the gradient it used."""

import torch
from torch import Tensor

from .formulas import (
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
from .reference import one_piece


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
