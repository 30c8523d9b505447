"""What every gradient of a step is multiplied by: the loss scale is taken off, and the norm of all together is clipped."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def gradient_factor(
    grads: Sequence[Tensor], max_norm: float | None, scale: Tensor | None, finite_only: bool
) -> Tensor | None:
    """One element, as `clip_grad_norm_` would have it: at most 1, max_norm over the norm; over `scale`; None for 1.

    grads: gradients times `scale`. finite_only: leave tensors with inf or NaN out of the norm, since they are not stepped.
    """
    factor = None if scale is None else scale.float().reciprocal()
    if max_norm is None:
        return factor
    norm = norm_of_finite(grads) if finite_only else get_total_norm(grads)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if factor is None:
        return (max_norm / (norm + 1e-6)).clamp(max=1.0)
    factor = factor.to(norm.device)
    return factor * (max_norm / (norm * factor + 1e-6)).clamp(max=1.0)


def norm_of_finite(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors without inf or NaN."""
    norms = [torch.where(grad.isfinite().all(), get_total_norm([grad]), 0.0) for grad in grads]
    return get_total_norm([norm.to(norms[0].device) for norm in norms])
