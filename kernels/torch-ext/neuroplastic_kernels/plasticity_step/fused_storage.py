"""Parameters and state as they are kept, inside kernels; `eight_bit` says what the codes of 8-bit state mean."""

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**-24)


@triton.jit
def _decode(codes, scale, LEVELS: tl.constexpr, POWER: tl.constexpr):
    """float32 values. codes: float32 of whole numbers; scale: of every element."""
    fraction = codes * (1.0 / LEVELS)
    magnitude = fraction * fraction
    if POWER == 4:
        magnitude = magnitude * magnitude
    return tl.where(fraction < 0, -magnitude, magnitude) * scale


@triton.jit
def _encode(values, word, LEVELS: tl.constexpr, POWER: tl.constexpr, GROUP: tl.constexpr):
    """Codes as float32 [BLOCK] and scales [BLOCK / GROUP]. word: uint32 [BLOCK], random; masked-out values must be 0."""
    rows: tl.constexpr = values.shape[0] // GROUP
    magnitude = tl.abs(values)
    seen = tl.where(magnitude == magnitude, magnitude, float("inf"))
    scales = tl.max(tl.reshape(seen, [rows, GROUP]), axis=1)
    scale = tl.reshape(tl.broadcast_to(scales[:, None], [rows, GROUP]), [values.shape[0]])
    portion = tl.where((scale > 0) & (scale < float("inf")), magnitude / scale, 0.0)
    root = tl.sqrt_rn(portion)
    if POWER == 4:
        root = tl.sqrt_rn(root)
    lower = tl.minimum(tl.floor(root * LEVELS), LEVELS - 1.0)
    below, above = _decode(lower, 1.0, LEVELS, POWER), _decode(lower + 1.0, 1.0, LEVELS, POWER)
    draw = (word >> 8).to(tl.float32) * UNIT
    chosen = lower + tl.where(draw < (portion - below) / (above - below), 1.0, 0.0)
    if POWER == 4:
        chosen = tl.where(portion > 0, tl.maximum(chosen, 1.0), 0.0)
    return tl.where(values < 0, -chosen, chosen), scales


@triton.jit
def load(pointer, offsets, mask):
    return tl.load(pointer + offsets, mask=mask, other=None if mask is None else 0).to(tl.float32)


@triton.jit
def load_moment(pointer, scales, offsets, mask, LEVELS: tl.constexpr, POWER: tl.constexpr, GROUP: tl.constexpr):
    """float32 [BLOCK]: one stream of state. pointer, scales: to a chunk's elements and, in 8 bits, scales, else None. GROUP:
    elements of one scale."""
    values = load(pointer, offsets, mask)
    if scales is not None:
        values = _decode(values, load(scales, offsets // GROUP, mask), LEVELS, POWER)
    return values


@triton.jit
def store_moment(
    pointer, scales, offset, size, mask, values, word, LEVELS: tl.constexpr, POWER: tl.constexpr, GROUP: tl.constexpr
):
    """Stores one stream of the block at `offset` of a chunk of `size` elements. mask, word: [BLOCK], as `_encode` says."""
    if scales is not None:
        values, largest = _encode(values, word, LEVELS, POWER, GROUP)
        groups = offset // GROUP + tl.arange(0, largest.shape[0])
        tl.store(scales + groups, largest, mask=groups < tl.cdiv(size, GROUP))
    tl.store(pointer + offset + tl.arange(0, values.shape[0]), values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _rounded_to_bfloat16(x, noise):
    """x without its lower 16 bits, up where these and `noise` (int32 in [0, 2^16)) carry; what is not finite stays."""
    bits = (x.to(tl.int32, bitcast=True) + noise) & -65536
    return tl.where(tl.abs(x) < float("inf"), bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _nearest_even(x):
    """The noise with which `_rounded_to_bfloat16` rounds to the nearest, ties to even."""
    return 0x7FFF + ((x.to(tl.int32, bitcast=True) >> 16) & 1)


@triton.jit
def store_param(pointer, offsets, mask, values, word):
    """The parameter, rounded once. word: uint32, random, for stochastic rounding; else None."""
    if pointer.dtype.element_ty == tl.bfloat16:
        noise = _nearest_even(values) if word is None else (word & 0xFFFF).to(tl.int32)
        values = _rounded_to_bfloat16(values, noise)
    tl.store(pointer + offsets, values.to(pointer.dtype.element_ty), mask=mask)
