"""Homeostatic scaling of a neuron's incoming weights toward a target activity."""

from collections.abc import Sequence

import torch
from torch import Tensor


def synaptic_scale(
    up_weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    errors: Sequence[Tensor],
    *,
    rate: float,
    scale_range: tuple[float, float],
) -> None:
    """One step of synaptic scaling for every site, in place: s <- clip(s (1 + rate error)), rows of W times s_new / s_old.

    The factor lives in the weights themselves, so the forward pass x @ W.T equals x @ (W0 * s).T with no factor in the model
    (W0 the weights as trained apart from scaling). What counts is the factor as applied: in half precision it is rounded to
    the weights' dtype, and changes below its resolution (2^-9 in bfloat16) are lost.

    Args:
        up_weights: per site [N, D], any float dtype.
        scales: per site [N] float32, the factors s applied so far.
        errors: per site [N] float32, target minus activity; 0 or non-finite leaves a neuron as it is.
        rate: step size of the scaling.
        scale_range: smallest and largest s.
    """
    for weight, scale, error in zip(up_weights, scales, errors, strict=True):
        error = torch.where(torch.isfinite(error), error, 0.0)
        new_scale = (scale * (1.0 + rate * error)).clamp(*scale_range)
        factor = (new_scale / scale).to(weight.dtype)
        weight.mul_(factor.unsqueeze(1))
        scale.mul_(factor)
