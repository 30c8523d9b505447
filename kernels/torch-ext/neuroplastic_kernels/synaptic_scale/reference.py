"""Homeostatic scaling of a neuron's incoming weights toward a target activity."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.shards import part_of


@torch.no_grad()
def synaptic_scale(
    incoming: Sequence[Tensor],
    firsts: Sequence[int],
    scale: Tensor,
    average: Tensor,
    weight: Tensor,
    active: Tensor,
    *,
    rate: float,
    target: float | str,
    scale_range: tuple[float, float],
    workspace: dict[Any, Any] | None = None,
) -> None:
    """One step of synaptic scaling for every site, in place: s <- clip(s (1 + rate error)), rows of W times s_new / s_old.

    The factor lives in the weights themselves, so the forward pass x @ W.T equals x @ (W0 * s).T with no factor in the model
    (W0 the weights as trained apart from scaling). What counts is the factor as applied: in half precision it is rounded to
    the weights' dtype, and changes below its resolution (2^-9 in bfloat16) are lost.

    The error is target - activity, with target="layer" (mean - activity) / mean, the mean being that of the site's counted
    neurons: those active and observed. Where it is not finite, and for all other neurons, nothing changes.

    Args:
        incoming: per site [N_i, D...], any float dtype, whole or split over processes (DTensor).
        firsts: per site, where its neurons begin in the tensors below, which hold N neurons of all sites.
        scale: [N] float32, the factors s applied so far.
        average: [N] float32, moving average of the neurons' |output|, not bias-corrected.
        weight: [N] float32, the total weight of that average, so that activity = average / weight; 0: never observed.
        active: [N] bool; the others are slots in reserve.
        rate: step size of the scaling.
        target: the activity to reach, or "layer".
        scale_range: smallest and largest s.
        workspace: for the fused form.
    """
    activity = average / weight.clamp_min(torch.finfo(torch.float32).tiny)
    counted = active & (weight > 0)
    for rows, first in zip(incoming, firsts, strict=True):
        here = slice(first, first + rows.shape[0])
        factor = _factor(scale[here], _error(activity[here], counted[here], target), rate, scale_range).to(rows.dtype)
        part = part_of(rows)
        part.tensor.mul_(factor[part.span(0)].view(-1, *[1] * (rows.ndim - 1)))
        scale[here].mul_(factor)


def _error(activity: Tensor, counted: Tensor, target: float | str) -> Tensor:
    if isinstance(target, str):  # "layer"
        mean = torch.where(counted, activity, 0.0).sum() / counted.sum().clamp_min(1)
        error = (mean - activity) / mean
    else:
        error = target - activity
    return torch.where(counted & torch.isfinite(error), error, 0.0)


def _factor(scale: Tensor, error: Tensor, rate: float, scale_range: tuple[float, float]) -> Tensor:
    return (scale * (1.0 + rate * error)).clamp(*scale_range) / scale
