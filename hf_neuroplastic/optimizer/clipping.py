"""What every gradient of a step is multiplied by: the loss scale is taken off, and the norm of all together is clipped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.utils import get_total_norm

from neuroplastic_kernels import add_up, added_up_over, aligned, is_sharded


def gradient_factor(
    grads: Sequence[Tensor | None],
    max_norm: float | None,
    scale: Tensor | None,
    finite_only: bool,
    params: Sequence[Tensor] = (),
) -> Tensor | None:
    """One element, as `clip_grad_norm_` would have it: at most 1, max_norm over the norm; over `scale`; None for 1.

    grads: gradients times `scale`. finite_only: leave tensors with inf or NaN out of the norm, since they are not stepped.
    params: of the gradients, where some are sharded.
    """
    factor = None if scale is None else scale.float().reciprocal()
    if max_norm is None:
        return factor
    if any(map(is_sharded, params)):
        norm = norm_over_processes(params, grads, finite_only)
    else:
        norm = total_norm([grad for grad in grads if grad is not None], finite_only)
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
    return get_total_norm(grads)


def norm_over_processes(params: Sequence[Any], grads: Sequence[Any], finite_only: bool) -> Tensor:
    """`total_norm` where some tensors are sharded: one all-reduce for each mesh, of a float64 number or, with finite_only, of
    two for each tensor. Sharded parameters without a gradient count as 0, so that processes with other gradients still meet.
    Raises RuntimeError in a process outside the mesh of a parameter."""
    numbers: dict[Any, list[Tensor]] = {}
    if any(is_sharded(param) and param.device_mesh.get_coordinate() is None for param in params):
        raise RuntimeError(
            "max_grad_norm limits the norm of all gradients together, but this process is not in the mesh of some parameters "
            "and cannot know theirs; give these parameters an optimizer of their own, on their processes, or max_grad_norm=None"
        )
    for param, grad in zip(params, grads, strict=True):
        if grad is not None or is_sharded(param):
            own = torch.zeros(1, device=param.device) if grad is None else aligned(param, grad)
            square = vector_norm(own, dtype=torch.promote_types(own.dtype, torch.float32)).double().square()
            bad = own.isfinite().logical_not().sum() if finite_only else torch.zeros_like(square)
            key = added_up_over(param, torch.float64) if is_sharded(param) else None
            numbers.setdefault(key, []).append(torch.stack([square, bad]))
    sums = {key: torch.stack(each) if finite_only else torch.stack(each).sum(0)[:1] for key, each in numbers.items()}
    for reduction in add_up([(key, each) for key, each in sums.items() if key is not None]):
        reduction.finish()
    squares = [
        torch.where(each[:, 1] > 0, 0.0, each[:, 0]).sum() if finite_only else each.sum() for each in sums.values()
    ]
    norm = torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()
    return norm.to(torch.float64 if any(param.dtype == torch.float64 for param in params) else torch.float32)
