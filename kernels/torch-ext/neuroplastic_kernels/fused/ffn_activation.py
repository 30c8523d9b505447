"""Bias, activation and dropout in one kernel; their gradients and the neurons' moments in another.

The forward pass reads h and writes the output; only h is kept. The backward pass reads h and the incoming gradient once,
writes the gradient of h, draws the dropout again from its seed, and sums over tokens on the side: the bias gradient and the
moments, as fp32 partial sums [splits, rows, N] that a second, small kernel adds up in fixed order. The same inputs give the
same bits. Both are custom operators, so that torch.compile takes them as they are.
"""

import torch
import triton
from torch import Tensor

from ..moments import ROWS
from ..reference.ffn_activation import check_activation, check_moments
from .ffn_kernels import backward_kernel, forward_kernel, sum_kernel

try:
    from .._ops import add_op_namespace_prefix  # written by kernel-builder
except ImportError:

    def add_op_namespace_prefix(name: str) -> str:
        return f"hf_neuroplastic::{name}"


FORWARD_TILE = {"BLOCK_T": 16, "BLOCK_N": 256, "num_warps": 4}
BACKWARD_TILE = {"BLOCK_T": 8, "BLOCK_N": 128, "num_warps": 4}
SUM_TILE = {"BLOCK_S": 32, "BLOCK_N": 64, "num_warps": 4}
BACKWARD_PROGRAMS = 1024  # several per multiprocessor, yet few enough that the partial sums stay small beside h
SEEDS = 2**62


@torch.library.custom_op(add_op_namespace_prefix("ffn_activation_forward"), mutates_args=())
def _forward(
    h: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    moments: Tensor | None,
    token_mask: Tensor | None,
    activation: str,
    rate: float,
) -> Tensor:
    """dropout(act(h + bias)), the dropout drawn from `seed`; moments and token_mask are for the backward pass alone."""
    h = h.contiguous()
    z = torch.empty_like(h)
    width = h.shape[-1]
    if h.numel():
        tokens, tile = h.numel() // width, FORWARD_TILE
        grid = (triton.cdiv(tokens, tile["BLOCK_T"]), triton.cdiv(width, tile["BLOCK_N"]))
        with torch.cuda.device_of(h):
            forward_kernel[grid](
                h, _contiguous(bias), seed, z, tokens, width, rate, _survivor_scale(rate), ACTIVATION=activation, **tile
            )
    return z


@_forward.register_fake
def _(h, bias, seed, moments, token_mask, activation, rate):
    return torch.empty_like(h, memory_format=torch.contiguous_format)


@torch.library.custom_op(add_op_namespace_prefix("ffn_activation_backward"), mutates_args=("moments",))
def _backward(
    dy: Tensor,
    h: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    moments: Tensor | None,
    token_mask: Tensor | None,
    activation: str,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of h and bias (empty without one); the moments of the counted tokens are added to `moments`."""
    h, dy = h.contiguous(), dy.contiguous()
    width = h.shape[-1]
    dh, dbias = torch.empty_like(h), h.new_zeros(0) if bias is None else torch.zeros_like(bias)
    if h.numel() == 0:
        return dh, dbias
    tokens, tile = h.numel() // width, BACKWARD_TILE
    columns, blocks = triton.cdiv(width, tile["BLOCK_N"]), triton.cdiv(tokens, tile["BLOCK_T"])
    tiles = triton.cdiv(blocks, max(1, BACKWARD_PROGRAMS // columns))
    splits = triton.cdiv(blocks, tiles)
    rows = (0 if moments is None else ROWS) + (bias is not None)
    partials = torch.empty(splits, rows, width, dtype=torch.float32, device=h.device)
    counted = None if token_mask is None else token_mask.contiguous().view(torch.uint8)
    with torch.cuda.device_of(h):
        backward_kernel[(splits, columns)](
            dy, h, _contiguous(bias), seed, counted, dh, partials, tokens, width, rows, rate, _survivor_scale(rate), tiles,
            ACTIVATION=activation, MOMENTS=moments is not None, **tile,
        )  # fmt: skip
        if rows:
            sum_kernel[(triton.cdiv(width, SUM_TILE["BLOCK_N"]), rows)](
                partials, moments, None if bias is None else dbias, splits, rows, width,
                0 if moments is None else moments.stride(0), **SUM_TILE,
            )  # fmt: skip
    return dh, dbias


@_backward.register_fake
def _(dy, h, bias, seed, moments, token_mask, activation, rate):
    dh = torch.empty_like(h, memory_format=torch.contiguous_format)
    return dh, h.new_empty(0) if bias is None else torch.empty_like(bias)


def _save(ctx, inputs, output):
    h, bias, seed, moments, token_mask, activation, rate = inputs
    ctx.save_for_backward(h, bias, seed)
    # Not through save_for_backward: other layers and micro-batches write to the moments before this backward pass does, and
    # under gradient checkpointing these stay those of the first forward pass.
    ctx.moments, ctx.token_mask = moments, token_mask
    ctx.activation, ctx.rate = activation, rate


def _differentiate(ctx, dy):
    h, bias, seed = ctx.saved_tensors
    dh, dbias = _backward(dy, h, bias, seed, ctx.moments, ctx.token_mask, ctx.activation, ctx.rate)
    return dh, None if bias is None else dbias, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _survivor_scale(rate: float) -> float:
    return 1.0 / (1.0 - rate) if rate < 1.0 else 0.0


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


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

    Arguments, result and errors are those of `reference.ffn_activation`, for float32, bfloat16 and float16. Everything is
    computed in float32 and rounded once. The dropout's numbers differ from PyTorch's: they are drawn from a seed which the
    device's generator gives (so torch.manual_seed fixes them) and drawn again in the backward pass; no mask is stored.
    """
    check_activation(activation)
    if bias is not None and bias.shape != h.shape[-1:]:
        raise ValueError(f"bias must have shape {tuple(h.shape[-1:])} to match h, got {tuple(bias.shape)}")
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout must be a probability in [0, 1], got {dropout}")
    if moments is not None:
        check_moments(moments, token_mask, h.shape)
        if moments.dtype is not torch.float32 or moments.stride(1) != 1:
            raise ValueError(
                f"moments must be float32 with adjacent columns, got {moments.dtype} with strides {moments.stride()}; "
                f"use torch.zeros(ROWS, N) or a range of its columns"
            )
    rate = dropout if training else 0.0
    seed = torch.randint(SEEDS, (1,), dtype=torch.int64, device=h.device) if rate > 0.0 else None
    return _forward(h, bias, seed, moments, token_mask, activation, rate)
