"""8-bit state inside kernels; `reference.eight_bit` says what the codes mean."""

import triton
import triton.language as tl

from ..reference.eight_bit import BLOCK as GROUP_SIZE

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
