"""Bias, activation and dropout of a feed-forward layer, with its neuron sums taken in the backward pass."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .neuron_sums import ABS_OUTPUT, ABS_OUTPUT_GRADIENT, OUTPUT, ROWS, TOKENS


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

# Class names of torch.nn's activations, then of transformers', which this package does not import.
ACTIVATION_NAMES = {
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "SiLUActivation": "silu",
    "QuickGELUActivation": "quick_gelu",
}


def activation_name(module: nn.Module) -> str | None:
    """The key under which `ffn_activation` knows the function of an activation module, or None if it does not."""
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    return ACTIVATION_NAMES.get(type(module).__name__)


def ffn_activation(
    h: Tensor,
    bias: Tensor | None,
    neuron_sums: Tensor | None = None,
    *,
    activation: str = "gelu",
    dropout: float = 0.0,
    training: bool = True,
    token_mask: Tensor | None = None,
) -> Tensor:
    """dropout(act(h + bias)); its backward pass also takes the neuron sums.

    Args:
        h: [..., N] pre-activations without bias, any float dtype.
        bias: [N] or None.
        neuron_sums: [ROWS, N] float32, added to in place by the backward pass, or, if it requires grad, given the sums as its
            gradient (see `record_neuron_sums`); None observes nothing.
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
    if neuron_sums is not None:
        z = record_neuron_sums(z, neuron_sums, token_mask)
    return F.dropout(z, dropout, training)


def record_neuron_sums(
    z: Tensor, neuron_sums: Tensor, token_mask: Tensor | None = None, neuron_dim: int = -1
) -> Tensor:
    """The identity on `z`; when the gradient of `z` passes backward, the neuron sums are taken.

    The neuron_sums belong to the backward pass because it runs once per micro-batch even under gradient checkpointing, never in
    evaluation, and never for a layer that was skipped.

    Args:
        z: outputs of the hidden neurons, [..., N] (after the activation, before dropout), any float dtype.
        neuron_sums: [ROWS, N] float32. The backward pass adds to them in place; if they require grad, they are left alone and
            get the sums as their gradient, which makes this a pure function, as torch.compile needs it.
        token_mask: the shape of `z` without `neuron_dim`, bool, True where a token counts; None counts all.
        neuron_dim: the dimension of `z` that counts the neurons, -1 or 1: channels are [B, C, H, W].

    Raises:
        ValueError: a shape does not fit `z`.
    """
    check_neuron_sums(neuron_sums, token_mask, z.shape, neuron_dim)
    return _RecordNeuronSums.apply(z, neuron_sums, token_mask, neuron_dim)


def check_activation(name: str) -> None:
    """Raises ValueError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")


def check_neuron_sums(neuron_sums: Tensor, token_mask: Tensor | None, shape: torch.Size, neuron_dim: int = -1) -> None:
    """Raises ValueError if `neuron_sums` is not float32, or it or `token_mask` does not fit neuron outputs of this shape."""
    tokens = list(shape)
    neurons = tokens.pop(neuron_dim)
    if neuron_sums.shape != (ROWS, neurons):
        raise ValueError(f"neuron_sums must have shape {(ROWS, neurons)} to match z, got {tuple(neuron_sums.shape)}")
    if neuron_sums.dtype is not torch.float32:
        raise ValueError(f"neuron_sums must be float32, got {neuron_sums.dtype}; use torch.zeros(ROWS, N)")
    if token_mask is not None and list(token_mask.shape) != tokens:
        raise ValueError(f"token_mask must have shape {tuple(tokens)} to match z, got {tuple(token_mask.shape)}")


def deliver(neuron_sums: Tensor, sums: Tensor) -> Tensor | None:
    """The gradient of `neuron_sums`, for the backward pass that took `sums`: they themselves, or None where they are added."""
    if neuron_sums.requires_grad:
        return sums
    with torch.no_grad():
        neuron_sums += sums.to(neuron_sums.device)  # a replica of the layer may work on another device
    return None


class _RecordNeuronSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, neuron_sums, token_mask, neuron_dim):
        ctx.save_for_backward(z)
        # Not through save_for_backward: under gradient checkpointing these stay those of the first forward pass.
        ctx.neuron_sums, ctx.token_mask, ctx.neuron_dim = neuron_sums, token_mask, neuron_dim
        return z.view_as(z)

    @staticmethod
    def backward(ctx, dz):
        (z,) = ctx.saved_tensors
        with torch.no_grad():
            sums = sum_neurons(z, dz, ctx.token_mask, ctx.neuron_dim)
        return dz, deliver(ctx.neuron_sums, sums), None, None


def sum_neurons(z: Tensor, dz: Tensor, token_mask: Tensor | None = None, neuron_dim: int = -1) -> Tensor:
    """[ROWS, N] float32: the sums over counted tokens of |z|, |dz|, z and 1.

    Args:
        z, dz: neuron outputs and the loss gradient with respect to them; see `record_neuron_sums` for the rest.
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
    sums = {
        ABS_OUTPUT: z.abs().sum(tokens),
        ABS_OUTPUT_GRADIENT: dz.abs().sum(tokens),
        OUTPUT: z.sum(tokens),
        TOKENS: count.expand(z.shape[neuron_dim]),
    }
    return torch.stack([sums[row] for row in range(ROWS)])
