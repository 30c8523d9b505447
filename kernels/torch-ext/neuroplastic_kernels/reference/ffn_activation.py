"""Bias, activation and dropout of a feed-forward layer, with its neurons' moments taken in the backward pass."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..moments import ABS_OUTPUT, ABS_OUTPUT_GRADIENT, ABS_PRODUCT, OUTPUT, OUTPUT_SQUARED, ROWS, TOKENS


def _quick_gelu(h: Tensor) -> Tensor:
    return h * torch.sigmoid(1.702 * h)


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
    """dropout(act(h + bias)); its backward also adds the neurons' moments to `moments`.

    Args:
        h: [..., N] pre-activations without bias, any float dtype.
        bias: [N] or None.
        moments: [ROWS, N] float32, added to in place by the backward pass; None observes nothing.
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


def record_moments(z: Tensor, moments: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The identity on `z`; when the gradient of `z` passes backward, the neurons' moments are added to `moments`.

    The moments belong to the backward pass because it runs once per micro-batch even under gradient checkpointing, never in
    evaluation, and never for a layer that was skipped.

    Args:
        z: [..., N] outputs of the hidden neurons (after the activation, before dropout).
        moments: [ROWS, N] float32, added to in place.
        token_mask: [...] bool, True where a token counts; None counts all.

    Raises:
        ValueError: a shape does not fit `z`.
    """
    check_moments(moments, token_mask, z.shape)
    return _RecordMoments.apply(z, moments, token_mask)


def check_activation(name: str) -> None:
    """Raises ValueError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")


def check_moments(moments: Tensor, token_mask: Tensor | None, shape: torch.Size) -> None:
    """Raises ValueError if the shape of `moments` or `token_mask` does not fit neuron outputs of shape [..., N]."""
    if moments.shape != (ROWS, shape[-1]):
        raise ValueError(f"moments must have shape {(ROWS, shape[-1])} to match z, got {tuple(moments.shape)}")
    if token_mask is not None and token_mask.shape != shape[:-1]:
        raise ValueError(f"token_mask must have shape {tuple(shape[:-1])} to match z, got {tuple(token_mask.shape)}")


class _RecordMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, moments, token_mask):
        ctx.save_for_backward(z)
        # Not through save_for_backward: under gradient checkpointing these stay those of the first forward pass.
        ctx.moments, ctx.token_mask = moments, token_mask
        return z.view_as(z)

    @staticmethod
    def backward(ctx, dz):
        (z,) = ctx.saved_tensors
        with torch.no_grad():
            add_moments(ctx.moments, z, dz, ctx.token_mask)
        return dz, None, None


def add_moments(moments: Tensor, z: Tensor, dz: Tensor, token_mask: Tensor | None = None) -> None:
    """Adds the sums over counted tokens of |z|, |dz|, |z dz|, z, z^2 and 1 to `moments` in place.

    Args:
        moments: [ROWS, N] float32.
        z, dz: [..., N] neuron outputs and the loss gradient with respect to them.
        token_mask: [...] bool or None.
    """
    z, dz = (x.detach().reshape(x.shape[:-1].numel(), x.shape[-1]).to(moments.dtype) for x in (z, dz))
    if token_mask is not None:
        counted = token_mask.reshape(-1).nonzero().squeeze(1)
        z, dz = z.index_select(0, counted), dz.index_select(0, counted)
    magnitude, gradient_magnitude = z.abs(), dz.abs()
    moments[OUTPUT] += z.sum(0)
    moments[ABS_OUTPUT] += magnitude.sum(0)
    moments[ABS_OUTPUT_GRADIENT] += gradient_magnitude.sum(0)
    moments[ABS_PRODUCT] += gradient_magnitude.mul_(magnitude).sum(0)
    moments[OUTPUT_SQUARED] += magnitude.square_().sum(0)
    moments[TOKENS] += z.shape[0]
