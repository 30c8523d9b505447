"""Bias, activation and dropout of a feed-forward layer, with its neurons' moments taken in the backward pass."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .neuron_sums import ABS_OUTPUT, ABS_OUTPUT_GRADIENT, ABS_PRODUCT, OUTPUT, OUTPUT_SQUARED, ROWS, TOKENS


def _quick_gelu(h: Tensor) -> Tensor:
    return h * torch.sigmoid(1.702 * h)


PART = 2**18  # elements of z that a processor sums at a time, so that what is computed from them stays in its cache

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": _quick_gelu,
}


def ffn_activation(
    h: Tensor,
    bias: Tensor | None,
    moments: Tensor | None = None,
    *,
    activation: str = "gelu",
    dropout: float = 0.0,
    training: bool = True,
    token_mask: Tensor | None = None,
) -> Tensor:
    """dropout(act(h + bias)); its backward pass also takes the neurons' moments.

    Args:
        h: [..., N] pre-activations without bias, any float dtype.
        bias: [N] or None.
        moments: [ROWS, N] float32, added to in place by the backward pass, or, if it requires grad, given the sums as its
            gradient (see `record_moments`); None observes nothing.
        activation: a key of `ACTIVATIONS`.
        dropout: probability of zeroing an element; applied only when `training`.
        token_mask: [...] bool, True where a token counts; None counts all.

    Returns:
        [..., N] in the dtype of `h`.

    Raises:
        ValueError: an unknown activation, or a shape that does not fit `h`.
    """
    check_activation(activation)
    z = ACTIVATIONS[activation](h if bias is None else h + bias.to(h.dtype))
    if moments is not None:
        z = record_moments(z, moments, token_mask)
    return F.dropout(z, dropout, training)


def record_moments(z: Tensor, moments: Tensor, token_mask: Tensor | None = None, neuron_dim: int = -1) -> Tensor:
    """The identity on `z`; when the gradient of `z` passes backward, the neurons' moments are taken.

    The moments belong to the backward pass because it runs once per micro-batch even under gradient checkpointing, never in
    evaluation, and never for a layer that was skipped.

    Args:
        z: outputs of the hidden neurons, [..., N] (after the activation, before dropout), any float dtype.
        moments: [ROWS, N] float32. The backward pass adds to it in place; if it requires grad, it is left alone and gets the
            sums as its gradient, which makes this a pure function, as torch.compile needs it.
        token_mask: the shape of `z` without `neuron_dim`, bool, True where a token counts; None counts all.
        neuron_dim: the dimension of `z` that counts the neurons, -1 or 1: channels are [B, C, H, W].

    Raises:
        ValueError: a shape does not fit `z`.
    """
    check_moments(moments, token_mask, z.shape, neuron_dim)
    return _RecordMoments.apply(z, moments, token_mask, neuron_dim)


def check_activation(name: str) -> None:
    """Raises ValueError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")


def check_moments(moments: Tensor, token_mask: Tensor | None, shape: torch.Size, neuron_dim: int = -1) -> None:
    """Raises ValueError if `moments` is not float32, or it or `token_mask` does not fit neuron outputs of this shape."""
    tokens = list(shape)
    neurons = tokens.pop(neuron_dim)
    if moments.shape != (ROWS, neurons):
        raise ValueError(f"moments must have shape {(ROWS, neurons)} to match z, got {tuple(moments.shape)}")
    if moments.dtype is not torch.float32:
        raise ValueError(f"moments must be float32, got {moments.dtype}; use torch.zeros(ROWS, N)")
    if token_mask is not None and list(token_mask.shape) != tokens:
        raise ValueError(f"token_mask must have shape {tuple(tokens)} to match z, got {tuple(token_mask.shape)}")


def deliver(moments: Tensor, sums: Tensor) -> Tensor | None:
    """The gradient of `moments`, for the backward pass that took `sums`: they themselves, or None where they are added."""
    if moments.requires_grad:
        return sums
    with torch.no_grad():
        moments += sums.to(moments.device)  # a replica of the layer may work on another device
    return None


class _RecordMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, moments, token_mask, neuron_dim):
        ctx.save_for_backward(z)
        # Not through save_for_backward: under gradient checkpointing these stay those of the first forward pass.
        ctx.moments, ctx.token_mask, ctx.neuron_dim = moments, token_mask, neuron_dim
        return z.view_as(z)

    @staticmethod
    def backward(ctx, dz):
        (z,) = ctx.saved_tensors
        with torch.no_grad():
            sums = sum_moments(z, dz, ctx.token_mask, ctx.neuron_dim)
        return dz, deliver(ctx.moments, sums), None, None


def sum_moments(z: Tensor, dz: Tensor, token_mask: Tensor | None = None, neuron_dim: int = -1) -> Tensor:
    """[ROWS, N] float32: the sums over counted tokens of |z|, |dz|, |z dz|, z, z^2 and 1.

    Args:
        z, dz: neuron outputs and the loss gradient with respect to them; see `record_moments` for the rest.
    """
    counted = None if token_mask is None else token_mask.unsqueeze(neuron_dim)
    if neuron_dim == -1:
        width = z.shape[-1]
        z, dz = z.reshape(z.shape[:-1].numel(), width), dz.reshape(z.shape[:-1].numel(), width)
        counted = None if counted is None else counted.reshape(-1, 1)
    if not z.is_cpu or torch.compiler.is_compiling():
        return _sum_part(z, dz, counted, neuron_dim)
    size = max(1, PART // max(1, z.shape[1:].numel()))
    masks = [None] * len(z.split(size)) if counted is None else counted.split(size)
    parts = zip(z.split(size), dz.split(size), masks, strict=True)
    return torch.stack([_sum_part(*part, neuron_dim) for part in parts]).sum(0)


def _sum_part(z: Tensor, dz: Tensor, counted: Tensor | None, neuron_dim: int) -> Tensor:
    """counted: bool, broadcastable to z, of size 1 in `neuron_dim`."""
    tokens = [dim for dim in range(z.ndim) if dim != neuron_dim % z.ndim]
    z, dz = z.float(), dz.float()
    count = torch.ones((), device=z.device) * (z.numel() // max(1, z.shape[neuron_dim]))
    if counted is not None:  # selected, not multiplied: what is not counted may be NaN
        z, dz, count = torch.where(counted, z, 0.0), torch.where(counted, dz, 0.0), counted.sum()
    magnitude, gradient_magnitude = z.abs(), dz.abs()
    sums = {
        ABS_OUTPUT: magnitude.sum(tokens),
        ABS_OUTPUT_GRADIENT: gradient_magnitude.sum(tokens),
        ABS_PRODUCT: (magnitude * gradient_magnitude).sum(tokens),
        OUTPUT: z.sum(tokens),
        OUTPUT_SQUARED: (z * z).sum(tokens),
        TOKENS: count.expand(z.shape[neuron_dim]),
    }
    return torch.stack([sums[row] for row in range(ROWS)])
