"""Bias, activation and dropout in one kernel; their gradients and the neuron sums in another.

The forward pass reads h and writes the output; only h is kept. The backward pass reads h and the incoming gradient once,
writes the gradient of h, draws the dropout again from its seed, and sums over tokens on the side: the bias gradient and the
neuron_sums, as fp32 partial sums [splits, rows, N] that a second, small kernel adds up in fixed order. The same inputs give the
same bits. For torch.compile both passes are custom operators, which it takes as they are.
"""

from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import backward_kernel, forward_kernel, sum_kernel
from .neuron_sums import ROWS
from .reference import check_activation, check_neuron_sums, deliver

try:
    from .._ops import add_op_namespace_prefix  # written by kernel-builder
except ImportError:

    def add_op_namespace_prefix(name: str) -> str:
        return f"hf_neuroplastic::{name}"


FORWARD_TILE = {"BLOCK_T": 8, "BLOCK_N": 256, "num_warps": 4}
BACKWARD_TILE = {"BLOCK_T": 4, "BLOCK_N": 128, "num_warps": 4}
SUM_TILE = {"BLOCK_S": 32, "BLOCK_N": 64, "num_warps": 4}
BACKWARD_PROGRAMS = 1024  # several per multiprocessor, yet few enough that the partial sums stay small beside h
SEEDS = 2**62


def _launch_forward(
    h: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    neuron_sums: Tensor | None,
    token_mask: Tensor | None,
    activation: str,
    rate: float,
) -> Tensor:
    """dropout(act(h + bias)), the dropout drawn from `seed`; neuron_sums and token_mask are for the backward pass alone."""
    h = h.contiguous()
    z = torch.empty_like(h)
    width = h.shape[-1]
    if h.numel():
        tokens, tile = h.numel() // width, FORWARD_TILE
        grid = (_blocks(tokens, tile["BLOCK_T"]), _blocks(width, tile["BLOCK_N"]))
        with torch.cuda.device_of(h):
            forward_kernel[grid](
                h, _contiguous(bias), seed, z, tokens, width, rate, _survivor_scale(rate), ACTIVATION=activation, **tile
            )
    return z


def _launch_backward(
    dy: Tensor,
    h: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    token_mask: Tensor | None,
    activation: str,
    rate: float,
    observe: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of h, and sums over tokens [rows, N] float32: the neuron_sums, if wanted, then the gradient of the bias."""
    h, dy = h.contiguous(), dy.contiguous()
    width, rows = h.shape[-1], _rows(bias, observe)
    dh = torch.empty_like(h)
    if h.numel() == 0:
        return dh, h.new_zeros(rows, width, dtype=torch.float32)
    tokens, tile = h.numel() // width, BACKWARD_TILE
    columns, blocks = _blocks(width, tile["BLOCK_N"]), _blocks(tokens, tile["BLOCK_T"])
    tiles = _blocks(blocks, max(1, BACKWARD_PROGRAMS // columns))
    splits = _blocks(blocks, tiles)
    partials = h.new_empty(splits, rows, width, dtype=torch.float32)
    sums = h.new_empty(rows, width, dtype=torch.float32)
    counted = None if token_mask is None else token_mask.contiguous().view(torch.uint8)
    with torch.cuda.device_of(h):
        backward_kernel[(splits, columns)](
            dy,
            h,
            _contiguous(bias),
            seed,
            counted,
            dh,
            partials,
            tokens,
            width,
            rows,
            rate,
            _survivor_scale(rate),
            tiles,
            ACTIVATION=activation,
            OBSERVE=observe,
            **tile,
        )
        if rows:
            sum_kernel[(_blocks(width, SUM_TILE["BLOCK_N"]), rows)](partials, sums, splits, rows, width, **SUM_TILE)
    return dh, sums


_forward = torch.library.custom_op(add_op_namespace_prefix("ffn_activation_forward"), _launch_forward, mutates_args=())
_backward = torch.library.custom_op(
    add_op_namespace_prefix("ffn_activation_backward"), _launch_backward, mutates_args=()
)


@_forward.register_fake
def _(h, bias, seed, neuron_sums, token_mask, activation, rate):
    return torch.empty_like(h, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(dy, h, bias, seed, token_mask, activation, rate, observe):
    dh = torch.empty_like(h, memory_format=torch.contiguous_format)
    return dh, h.new_empty(_rows(bias, observe), h.shape[-1], dtype=torch.float32)


def _rows(bias: Tensor | None, observe: bool) -> int:
    return (ROWS if observe else 0) + (bias is not None)


def _save(ctx, inputs, output):
    h, bias, seed, neuron_sums, token_mask, activation, rate = inputs
    ctx.save_for_backward(h, bias, seed)
    # Not through save_for_backward: other layers and micro-batches write to the neuron_sums before this backward pass does, and
    # under gradient checkpointing these stay those of the first forward pass.
    ctx.neuron_sums, ctx.token_mask = neuron_sums, token_mask
    ctx.activation, ctx.rate = activation, rate


def _differentiate(backward, ctx, dy):
    h, bias, seed = ctx.saved_tensors
    observe = ctx.neuron_sums is not None
    dh, sums = backward(dy, h, bias, seed, ctx.token_mask, ctx.activation, ctx.rate, observe)
    dbias = None if bias is None else sums[-1].to(bias.dtype)
    dneuron_sums = deliver(ctx.neuron_sums, sums[:ROWS]) if observe else None
    return dh, dbias, None, dneuron_sums, None, None, None


_forward.register_autograd(partial(_differentiate, _backward), setup_context=_save)


class _Eager(torch.autograd.Function):
    """The same without the detour of an operator, which costs more time on the host than the launches."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _launch_forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _differentiate(_launch_backward, ctx, dy)


def _blocks(size: int, block: int) -> int:
    """size / block, rounded up: triton.cdiv can be called in kernels too, for which it takes many times as long."""
    return -(-size // block)


def _survivor_scale(rate: float) -> float:
    return 1.0 / (1.0 - rate) if rate < 1.0 else 0.0


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


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
    """dropout(act(h + bias)); its backward also adds the neuron sums to `neuron_sums`.

    Arguments, result and errors are those of `ffn_activation.reference`, for float32, bfloat16 and float16. Everything is
    computed in float32 and rounded once. The dropout's numbers differ from PyTorch's: they are drawn from a seed which the
    device's generator gives (so torch.manual_seed fixes them) and drawn again in the backward pass; no mask is stored.
    """
    check_activation(activation)
    if bias is not None and bias.shape != h.shape[-1:]:
        raise ValueError(f"bias must have shape {tuple(h.shape[-1:])} to match h, got {tuple(bias.shape)}")
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout must be a probability in [0, 1], got {dropout}")
    if neuron_sums is not None:
        check_neuron_sums(neuron_sums, token_mask, h.shape)
    rate = dropout if training else 0.0
    seed = torch.randint(SEEDS, (1,), dtype=torch.int64, device=h.device) if rate > 0.0 else None
    form = _forward if torch.compiler.is_compiling() else _Eager.apply
    return form(h, bias, seed, neuron_sums, token_mask, activation, rate)
