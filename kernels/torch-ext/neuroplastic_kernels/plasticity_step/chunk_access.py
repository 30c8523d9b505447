"""How a program finds its chunk in the tables of a `pointer_tables.ChunkTable`, and reads it."""

import triton
import triton.language as tl

from .fused_eight_bit import GROUP
from .pointer_tables import (
    EXP_AVG,
    EXP_AVG_SQ,
    EXTRA,
    FACTORS,
    FIELDS,
    FIRST_CHUNK,
    GRAD,
    NEURONS,
    NUMEL,
    PARAM,
    STRIDE,
    TRACE,
)

_PARAM, _GRAD, _TRACE, _EXP_AVG = tl.constexpr(PARAM), tl.constexpr(GRAD), tl.constexpr(TRACE), tl.constexpr(EXP_AVG)
_EXP_AVG_SQ, _EXTRA, _FIELDS = tl.constexpr(EXP_AVG_SQ), tl.constexpr(EXTRA), tl.constexpr(FIELDS)
_NUMEL, _FIRST_CHUNK = tl.constexpr(NUMEL), tl.constexpr(FIRST_CHUNK)
_FACTORS, _NEURONS, _STRIDE = tl.constexpr(FACTORS), tl.constexpr(NEURONS), tl.constexpr(STRIDE)
_LANES = tl.constexpr(1024)  # partial sums added at a time


@triton.jit
def locate(fields, owners, chunk, CHUNK: tl.constexpr):
    """A chunk's tensor: its row of fields, elements, first chunk. Then the chunk's first element, and its length."""
    row = fields + tl.load(owners + chunk) * _FIELDS
    numel, first = tl.load(row + _NUMEL), tl.load(row + _FIRST_CHUNK).to(tl.int32)
    start = (chunk - first).to(tl.int64) * CHUNK
    return row, numel, first, start, tl.minimum(numel - start, CHUNK).to(tl.int32)


@triton.jit
def idle(row, rule):
    """Whether this tensor stays as it is: without a gradient, or when some gradient overflowed."""
    still = tl.load(row + _GRAD) == 0
    if rule.found_inf is not None:
        still = still | (tl.load(rule.found_inf) != 0)
    return still


@triton.jit
def field_pointer(row, FIELD: tl.constexpr, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(row + FIELD).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def stream_pointers(
    row, start, PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr
):
    """Pointers to a chunk of p, g, a, m, v and u; or, in place of u, to the chunk's scales of a."""
    UNSIGNED: tl.constexpr = tl.uint8 if EIGHT_BIT else tl.float32
    SIGNED: tl.constexpr = tl.int8 if EIGHT_BIT else tl.float32
    return (
        field_pointer(row, _PARAM, start, PARAM, ALIGNED),
        field_pointer(row, _GRAD, start, GRAD, ALIGNED),
        field_pointer(row, _TRACE, start, UNSIGNED, ALIGNED),
        field_pointer(row, _EXP_AVG, start, SIGNED, ALIGNED),
        field_pointer(row, _EXP_AVG_SQ, start, UNSIGNED, ALIGNED),
        field_pointer(row, _EXTRA, start // GROUP if EIGHT_BIT else start, tl.float32, ALIGNED),
    )


@triton.jit
def load(pointer, offsets, mask):
    if mask is None:
        return tl.load(pointer + offsets).to(tl.float32)
    else:
        return tl.load(pointer + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def tally(partials, row: tl.constexpr, chunks, first, count):
    """The sum of `count` partial sums from `first` on, always added in the same order."""
    lanes = tl.arange(0, _LANES)
    total = tl.zeros([_LANES], tl.float32)
    for start in range(0, count, _LANES):
        total += tl.load(partials + row * chunks + first + start + lanes, mask=start + lanes < count, other=0.0)
    return tl.sum(total)


@triton.jit
def sum_in_order(values):
    """The sum of a tile [a power of 2], always added in the same order.

    `tl.sum` adds in the order of the layout, which the compiler chooses for each kernel; a sum of two has only one order.
    """
    for _ in tl.static_range(20):
        if values.shape[0] > 1:
            values = tl.sum(tl.reshape(values, [2, values.shape[0] // 2]), axis=0)
    return tl.sum(values)


@triton.jit
def neurons_of(row, start):
    """What `of_neurons` needs to know about a chunk from `start` on."""
    stride, count = tl.load(row + _STRIDE), tl.load(row + _NEURONS)
    return (
        tl.load(row + _FACTORS),
        (start // stride % count).to(tl.int32),  # the first neuron
        (start % stride).to(tl.int32),  # how far into it the chunk starts
        stride.to(tl.int32),
        count.to(tl.int32),
    )


@triton.jit
def of_neurons(update, neurons, offsets, mask):
    """u times the factor of each element's neuron, where there are factors."""
    if neurons[0] != 0:
        index = (neurons[1] + (neurons[2] + offsets) // neurons[3]) % neurons[4]
        update *= load(neurons[0].to(tl.pointer_type(tl.float32)), index, mask)
    return update
