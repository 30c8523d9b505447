"""What every gradient of a step is multiplied by: the loss scale is taken off, and the norm of all together is clipped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
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
    norm = total_norm(grads, finite_only)
    if factor is None:
        return (max_norm / (norm + 1e-6)).clamp(max=1.0)
    factor = factor.to(norm.device)
    return factor * (max_norm / (norm * factor + 1e-6)).clamp(max=1.0)


def total_norm(grads: Sequence[Tensor], finite_only: bool) -> Tensor:
    """The norm of all tensors; of half precision in float32, where squares of gradients under a loss scale do not overflow."""
    if finite_only or any(grad.dtype in (torch.float16, torch.bfloat16) for grad in grads):
        norms = [vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)) for grad in grads]
        if finite_only:
            norms = [torch.where(grad.isfinite().all(), norm, 0.0) for grad, norm in zip(grads, norms, strict=True)]
        grads = [norm.to(norms[0].device) for norm in norms]
    by_mesh: dict[Any, list[Tensor]] = {}  # torch takes no norm of whole and sharded tensors together
    for grad in grads:
        by_mesh.setdefault(getattr(grad, "device_mesh", None), []).append(grad)
    parts = [get_total_norm(held) for held in by_mesh.values()]
    parts = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in parts]
    return parts[0] if len(parts) == 1 else vector_norm(torch.stack([part.to(parts[0].device) for part in parts]))
