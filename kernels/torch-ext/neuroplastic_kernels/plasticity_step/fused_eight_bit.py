"""8-bit state inside kernels; `eight_bit` says what the codes mean."""

import triton
import triton.language as tl

from .eight_bit import BLOCK as GROUP_SIZE

GROUP = tl.constexpr(GROUP_SIZE)
UNIT = tl.constexpr(2.0**-24)


@triton.jit
def decode(codes, scale, LEVELS: tl.constexpr, POWER: tl.constexpr):
    """float32 values; codes: float32 of whole numbers, scale: of every element."""
    fraction = codes * (1.0 / LEVELS)
    magnitude = fraction * fraction
    if POWER == 4:
        magnitude = magnitude * magnitude
    return tl.where(fraction < 0, -magnitude, magnitude) * scale


@triton.jit
def encode(values, word, LEVELS: tl.constexpr, POWER: tl.constexpr):
    """Codes as float32 [BLOCK] and scales [BLOCK / GROUP]. word: uint32 [BLOCK], random; masked-out values must be 0."""
    BLOCK: tl.constexpr = values.shape[0]
    magnitude = tl.abs(values)
    rows: tl.constexpr = BLOCK // GROUP
    seen = tl.where(magnitude == magnitude, magnitude, float("inf"))
    scales = tl.max(tl.reshape(seen, [rows, GROUP]), axis=1)
    scale = tl.reshape(tl.broadcast_to(scales[:, None], [rows, GROUP]), [BLOCK])
    portion = tl.where((scale > 0) & (scale < float("inf")), magnitude / scale, 0.0)
    root = tl.sqrt(portion)
    if POWER == 4:
        root = tl.sqrt(root)
    lower = tl.minimum(tl.floor(root * LEVELS), LEVELS - 1.0)
    below, above = decode(lower, 1.0, LEVELS, POWER), decode(lower + 1.0, 1.0, LEVELS, POWER)
    draw = (word >> 8).to(tl.float32) * UNIT
    chosen = lower + tl.where(draw < (portion - below) / (above - below), 1.0, 0.0)
    if POWER == 4:
        chosen = tl.where(portion > 0, tl.maximum(chosen, 1.0), 0.0)
    return tl.where(values < 0, -chosen, chosen), scales


@triton.jit
def groups_of(offsets, mask):
    """The places [BLOCK / GROUP] of a tile's scales, and which of them exist. offsets: [BLOCK], consecutive."""
    BLOCK: tl.constexpr = offsets.shape[0]
    group, count = tl.arange(0, BLOCK // GROUP), BLOCK // GROUP
    if mask is not None:
        count = tl.cdiv(tl.sum(mask.to(tl.int32)), GROUP)
    return tl.min(offsets, axis=0) // GROUP + group, group < count


@triton.jit
def add_decoded(total, codes, scales):
    """`total` [BLOCK / GROUP] plus the values of each group, in units of 1 / 255^2: the same bits in every kernel.

    codes: float32 of the trace's whole numbers, whose squares add up to less than 2^24 in a group, without an error.
    """
    squares = tl.sum(tl.reshape(codes * codes, [scales.shape[0], GROUP]), axis=1)
    return tl.fma(scales, squares, total)
