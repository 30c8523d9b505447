"""Optimizer state in 8 bits: a code per element and a scale per block of at most 256, computed without tables.

With s the largest magnitude of a block, L the largest code and k the power of the stream,

    value = s * sign(code) * (|code| / L)^k          m: int8, L 127, k 2;  v: uint8, L 255, k 4;  a: uint8, L 255, k 2

so that precision is relative: sqrt(v), which divides a step, has the resolution of a, and v spans nine decades. Of the two
codes around a value one is drawn such that the expected value is exact. Nearest rounding would not do: a moment that decays by
a thousandth per step would stay at its code for ever. A positive v never becomes 0, which would let a step explode.

Blocks are those of Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861; the arithmetic codes in
place of its tables and the unbiased draw are deviations. A block with a non-finite value decodes to NaN as a whole.

A row is what one index of a tensor's first dimension holds. Blocks lie within rows: of 256 elements, or of the largest power
of 2 that divides a row, so that no split into rows, as FSDP's, cuts a block: codes and scales of shards are those of the whole.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # elements at most
ROW = 16  # elements of which a row must be a multiple
SMALLEST = 4096  # elements; below it state stays in float32


class Code(NamedTuple):
    """How one stream is coded: storage dtype, largest code L, and the power k, which is 2 or 4."""

    dtype: torch.dtype
    levels: int
    power: int


CODES = {  # in the order of the rows of `scales`
    "exp_avg": Code(torch.int8, 127, 2),
    "exp_avg_sq": Code(torch.uint8, 255, 4),
    "trace": Code(torch.uint8, 255, 2),  # where there is one
}


def has_blocks_in_rows(shape: Sequence[int]) -> bool:
    """Whether a tensor's rows can be cut into blocks."""
    row = math.prod(shape[1:])
    return len(shape) > 1 and row > 0 and row % ROW == 0


def block_of(shape: Sequence[int]) -> int:
    """Elements of a block of a tensor of this shape, or of some of its rows; without blocks in rows the last may be shorter."""
    row = math.prod(shape[1:])
    return min(BLOCK, row & -row) if has_blocks_in_rows(shape) else BLOCK


def scales_shape(shape: Sequence[int], streams: int) -> tuple[int, int, int]:
    """[streams, rows, blocks of a row] of a tensor's scales; a tensor without blocks in rows counts as one row."""
    block = block_of(shape)
    if has_blocks_in_rows(shape):
        return streams, shape[0], math.prod(shape[1:]) // block
    return streams, 1, -(-math.prod(shape) // block)


def is_quantised(state: Tensor) -> bool:
    """Whether a tensor holds codes."""
    return not state.is_floating_point()


def block_scales(values: Tensor) -> Tensor:
    """float32 [blocks]: the largest magnitude of each, infinite where a value is NaN."""
    flat, block = values.reshape(-1).abs().nan_to_num(nan=torch.inf, posinf=torch.inf), block_of(values.shape)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block).amax(1)


def spread(scales: Tensor, like: Tensor) -> Tensor:
    """The scale of every element, in the shape of `like`."""
    block = block_of(like.shape)
    return (
        scales.flatten().repeat_interleave(block, output_size=scales.numel() * block)[: like.numel()].view(like.shape)
    )


def decode(codes: Tensor, scales: Tensor, code: Code) -> Tensor:
    """float32 values of `codes`' shape. scales: float32, of as many elements as there are blocks."""
    fraction = codes.to(torch.float32) * (1 / code.levels)
    magnitude = fraction.square()
    if code.power == 4:
        magnitude = magnitude.square()
    return magnitude.mul_(spread(scales, codes)).copysign_(fraction)


def encode(values: Tensor, draw: Tensor | float, code: Code) -> tuple[Tensor, Tensor]:
    """Codes of `values`' shape and float32 scales [blocks].

    draw: float32 in [0, 1) of the same shape; or 0.5, for the nearest value.
    """
    scales = block_scales(values)
    scale, magnitude = spread(scales, values), values.abs()
    portion = torch.where(scale.isfinite() & (scale > 0), magnitude / scale, 0.0)
    root = portion.sqrt() if code.power == 2 else portion.sqrt().sqrt()
    lower = (root * code.levels).floor_().clamp_(max=code.levels - 1)
    below, above = ((step * (1 / code.levels)) ** code.power for step in (lower, lower + 1))
    chosen = lower + (draw < (portion - below) / (above - below))
    if code.power == 4:
        chosen = torch.where(portion > 0, chosen.clamp_(min=1), 0)
    return chosen.copysign_(values).to(code.dtype), scales


def names(state: Mapping[str, Tensor]) -> list[str]:
    """The coded streams of a state, in the order of the rows of its `scales`."""
    return [name for name in CODES if name in state]


def decoded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moments of an 8-bit state in float32, by name; nothing for other states."""
    if "scales" not in state:
        return {}
    return {
        name: decode(state[name], row, CODES[name]) for name, row in zip(names(state), state["scales"], strict=True)
    }


def store(state: Mapping[str, Tensor], values: Mapping[str, Tensor], words: Sequence[Tensor] | None = None) -> None:
    """Encodes the moments into an 8-bit state; nothing for others.

    words: random bits for each of the streams m, v, a; None for the nearest codes.
    """
    for row, name in enumerate(names(state) if "scales" in state else ()):
        draw = 0.5 if words is None else (words[row] >> 8).to(torch.float32) * 2.0**-24
        codes, scales = encode(values[name], draw, CODES[name])
        state["scales"][row] = scales.view(state["scales"].shape[1:])
        state[name].copy_(codes)
