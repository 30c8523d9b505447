"""The state of a chunk inside kernels, in float32 or in 8 bits, and sums of its trace."""

import triton
import triton.language as tl

from .chunk_access import load, sum_in_order
from .fused_eight_bit import GROUP, add_decoded, decode, encode, groups_of

_SQUARED_UNIT = tl.constexpr(1 / 255**2)  # of `add_decoded`


@triton.jit
def state(streams, blocks, offsets, mask):
    """a, m and v before the step; what is not used is not read. blocks: of an 8-bit tensor, else None."""
    a = load(streams[2], offsets, mask)
    m = load(streams[3], offsets, mask)
    v = load(streams[4], offsets, mask)
    if blocks is not None:
        a = decode(a, load(streams[5], offsets // GROUP, mask), 255, 2)
        m = decode(m, load(streams[5] + blocks, offsets // GROUP, mask), 127, 2)
        v = decode(v, load(streams[5] + 2 * blocks, offsets // GROUP, mask), 255, 4)
    return a, m, v


@triton.jit
def no_traces(EIGHT_BIT: tl.constexpr, BLOCK: tl.constexpr):
    """What `add_traces` starts with: a sum for each lane of a tile, or for each group of 8-bit codes."""
    return tl.zeros([BLOCK // GROUP if EIGHT_BIT else BLOCK], tl.float32)


@triton.jit
def add_traces(total, streams, offsets, mask, EIGHT_BIT: tl.constexpr):
    """`total` plus a as it lies in memory."""
    a = load(streams[2], offsets, mask)
    if EIGHT_BIT:
        places, valid = groups_of(offsets, mask)
        return add_decoded(total, a, load(streams[5], places, valid))
    else:
        return total + a


@triton.jit
def sum_of_traces(total, EIGHT_BIT: tl.constexpr):
    return sum_in_order(total) * (_SQUARED_UNIT if EIGHT_BIT else 1.0)


@triton.jit
def store_codes(codes, scales, offsets, mask, values, word, LEVELS: tl.constexpr, POWER: tl.constexpr):
    """One stream of 8-bit state; what was written. The scales of whole blocks beyond the tensor are 0 and not written."""
    coded, largest = encode(values, word, LEVELS, POWER)
    tl.store(codes + offsets, coded.to(codes.dtype.element_ty), mask=mask)
    places, valid = groups_of(offsets, mask)
    tl.store(scales + places, largest, mask=valid)
    return coded, largest
