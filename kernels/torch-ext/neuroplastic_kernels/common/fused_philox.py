"""Counter-based random numbers inside kernels: those of `common.philox`, bit for bit.

Triton's own Philox4x32-10 with the counter spelt out. Every counter word is uint32; tiles of counters are broadcast first.
"""

import math

import triton
import triton.language as tl

TWO_PI = tl.constexpr(2.0 * math.pi)
UNIT = tl.constexpr(2.0**-24)


@triton.jit
def _words(seed, index, event, site, tensor):
    zero = (index * 0).to(tl.uint32)
    return tl.philox(seed, index.to(tl.uint32), zero + event.to(tl.uint32), zero + site.to(tl.uint32), zero + tensor)


@triton.jit
def _unit(word):
    """float32 in [0, 1) from the upper 24 bits."""
    return (word >> 8).to(tl.float32) * UNIT


@triton.jit
def uniform(seed, index, event, site, tensor: tl.constexpr):
    """float32 in [0, 1) of `index`'s shape. seed: int64 scalar, index: integer tile, event and site: integer scalars."""
    word, _, _, _ = _words(seed, index, event, site, tensor)
    return _unit(word)


@triton.jit
def normal(seed, index, event, site, tensor):
    """Standard normal float32 of `index`'s shape; arguments as for `uniform`."""
    first, second, _, _ = _words(seed, index, event, site, tensor)
    radius = ((first >> 8) + 1).to(tl.float32) * UNIT
    return tl.sqrt_rn(-2.0 * tl.log(radius)) * tl.cos(_unit(second) * TWO_PI)


@triton.jit
def uniform_rows(seed, row, column, BLOCK_COLUMNS: tl.constexpr):
    """float32 in [0, 1) for a tile of a matrix, four neighbouring columns from each counter (column // 4, row, 0, 0).

    seed: int64 scalar, row: [R] integers, column: first column of the tile, a multiple of 4. Returns [R, BLOCK_COLUMNS].
    """
    group = (column // 4 + tl.arange(0, BLOCK_COLUMNS // 4)).to(tl.uint32)
    group, row = tl.broadcast(group[None, :], row.to(tl.uint32)[:, None])
    zero = group * 0
    first, second, third, fourth = tl.philox(seed, group, row, zero, zero)
    return _unit(tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth)))
