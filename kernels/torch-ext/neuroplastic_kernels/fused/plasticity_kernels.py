"""The launches of one fused NeuroPlastic step. A program works on one chunk of one tensor, block by block, in float32.

Sums over a tensor are float32 partial sums per chunk, which every consumer adds up in the same order: no atomics, so the same
inputs give the same bits. Bytes per float32 parameter, without coupled decay:

    squares_kernel   only with max_grad_norm: reads g; sums of g^2                                              4
    signals_kernel   reads g, a, m, v; sums of |g|, a and r as they will be; counts the step                   16
    update_kernel    reads g, a, m, v; writes a, m, v, u; sums of u^2 and base^2                               32
    apply_kernel     reads u, p; writes p                                                                      12

With 8-bit state u is not kept: update_kernel only sums, and apply_kernel computes everything again and writes it.
Common arguments: fields int64 [tensors, FIELDS] and owners int64 [chunks] of a `pointer_tables.Plan`; partials float32
[SUMS, chunks]; start_chunk, the launch's first chunk; rule, a `plasticity_formulas.Rule`.
"""

import triton
import triton.language as tl

from .chunk_access import field_pointer, idle, load, locate, stream_pointers, tally
from .eight_bit import GROUP, decode, encode
from .plasticity_formulas import (
    advance,
    clipping,
    homeostasis,
    inverse_mean,
    memory,
    moment,
    nearest_even,
    proposal,
    rounded_to_bfloat16,
    unscaled,
)
from .pointer_tables import GRAD, NUMBER, STEP

_GRAD, _STEP, _NUMBER = tl.constexpr(GRAD), tl.constexpr(STEP), tl.constexpr(NUMBER)
SUMS = 6  # rows of the partial sums
_SQUARES, _TRACES, _MAGNITUDES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_MEMORIES, _UPDATES, _BASES = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)

RUNTIME = ("chunks", "start_chunk", "seed")  # integers that change without compiling anew


@triton.jit
def _gradient_gain(partials, chunks, rule):
    """What a raw gradient is multiplied by."""
    gain = rule.sign * unscaled(rule)
    if rule.max_grad_norm is not None:
        gain = gain * clipping(tally(partials, _SQUARES, chunks, 0, chunks), rule)
    return gain


@triton.jit
def _inverse_means(partials, chunks, first, numel, CHUNK: tl.constexpr, rule):
    """`inverse_mean` of a, |g| and r; 0 for what is not used."""
    count = tl.cdiv(numel, CHUNK).to(tl.int32)
    of_trace, of_gradient, of_memory = 0.0, 0.0, 0.0
    if rule.signals != "none":
        of_gradient = inverse_mean(tally(partials, _MAGNITUDES, chunks, first, count), numel, rule)
    if rule.signals == "all":
        of_trace = inverse_mean(tally(partials, _TRACES, chunks, first, count), numel, rule)
        of_memory = inverse_mean(tally(partials, _MEMORIES, chunks, first, count), numel, rule)
    return of_trace, of_gradient, of_memory


@triton.jit
def _advanced(streams, blocks, offsets, mask, gain, rule):
    """g, and a, m, v after the step. blocks: of an 8-bit tensor, else None."""
    g = load(streams[1], offsets, mask) * gain
    if rule.gradient_decay is not None:
        g += rule.gradient_decay * load(streams[0], offsets, mask)
    a = load(streams[2], offsets, mask)
    m = load(streams[3], offsets, mask)
    v = load(streams[4], offsets, mask)
    if blocks is not None:
        a = decode(a, load(streams[5], offsets // GROUP, mask), 255, 2)
        m = decode(m, load(streams[5] + blocks, offsets // GROUP, mask), 127, 2)
        v = decode(v, load(streams[5] + 2 * blocks, offsets // GROUP, mask), 255, 4)
    a, m, v = advance(g, a, m, v, rule)
    return g, a, m, v


@triton.jit
def _proposed(streams, blocks, offsets, mask, gain, inverse, now, rule):
    """`_advanced`'s a, m, v; the base's step; u."""
    g, a, m, v = _advanced(streams, blocks, offsets, mask, gain, rule)
    base, update = proposal(g, a, m, v, inverse, now, rule)
    if rule.update_decay is not None:
        update += rule.update_decay * load(streams[0], offsets, mask)
    return a, m, v, base, update


@triton.jit
def _blocks(numel, EIGHT_BIT: tl.constexpr):
    if EIGHT_BIT:
        return tl.cdiv(numel, GROUP)
    else:
        return None


@triton.jit
def _add_squares(total, grad, offsets, mask, gain):
    g = load(grad, offsets, mask) * gain
    return total + g * g


@triton.jit(do_not_specialize=RUNTIME)
def squares_kernel(
    fields, owners, partials, chunks, start_chunk, rule,
    GRAD: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of squares of each chunk's gradient, the loss scale taken off."""
    chunk = start_chunk + tl.program_id(0)
    row, _, _, start, size = locate(fields, owners, chunk, CHUNK)
    lanes, full, total = tl.arange(0, BLOCK), size // BLOCK * BLOCK, tl.zeros([BLOCK], tl.float32)
    if tl.load(row + _GRAD) != 0:
        grad, gain = field_pointer(row, _GRAD, start, GRAD, ALIGNED), unscaled(rule)
        for offset in range(0, full, BLOCK):
            total = _add_squares(total, grad, offset + lanes, None, gain)
        for offset in range(full, size, BLOCK):
            total = _add_squares(total, grad, offset + lanes, offset + lanes < size, gain)
    tl.store(partials + _SQUARES * chunks + chunk, tl.sum(total))


@triton.jit
def _add_signals(sums, streams, blocks, offsets, mask, gain, rule):
    g, a, m, v = _advanced(streams, blocks, offsets, mask, gain, rule)
    return sums[0] + a, sums[1] + tl.abs(g), sums[2] + memory(m, v, rule)


@triton.jit(do_not_specialize=RUNTIME)
def signals_kernel(
    fields, owners, partials, chunks, start_chunk, rule,
    PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each chunk's sums of a, |g| and r; the first chunk of a tensor counts its step."""
    chunk = start_chunk + tl.program_id(0)
    row, numel, first, start, size = locate(fields, owners, chunk, CHUNK)
    if idle(row, rule):
        return
    if chunk == first:
        step = tl.load(row + _STEP).to(tl.pointer_type(tl.float32))
        tl.store(step, tl.load(step) + 1)
    if rule.signals != "none":
        streams, blocks = stream_pointers(row, start, PARAM, GRAD, EIGHT_BIT, ALIGNED), _blocks(numel, EIGHT_BIT)
        gain = _gradient_gain(partials, chunks, rule)
        lanes, full, zeros = tl.arange(0, BLOCK), size // BLOCK * BLOCK, tl.zeros([BLOCK], tl.float32)
        sums = (zeros, zeros, zeros)
        for offset in range(0, full, BLOCK):
            sums = _add_signals(sums, streams, blocks, offset + lanes, None, gain, rule)
        for offset in range(full, size, BLOCK):
            sums = _add_signals(sums, streams, blocks, offset + lanes, offset + lanes < size, gain, rule)
        tl.store(partials + _TRACES * chunks + chunk, tl.sum(sums[0]))
        tl.store(partials + _MAGNITUDES * chunks + chunk, tl.sum(sums[1]))
        tl.store(partials + _MEMORIES * chunks + chunk, tl.sum(sums[2]))


@triton.jit
def _update(sums, streams, blocks, offsets, mask, gain, inverse, now, rule):
    a, m, v, base, update = _proposed(streams, blocks, offsets, mask, gain, inverse, now, rule)
    if blocks is None:
        tl.store(streams[2] + offsets, a, mask=mask)
        tl.store(streams[3] + offsets, m, mask=mask)
        tl.store(streams[4] + offsets, v, mask=mask)
        tl.store(streams[5] + offsets, update, mask=mask)
    return sums[0] + update * update, sums[1] + base * base


@triton.jit(do_not_specialize=RUNTIME)
def update_kernel(
    fields, owners, partials, chunks, start_chunk, rule,
    PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state's step and u; each chunk's sums of u^2 and base^2. 8-bit state is left to `apply_kernel`."""
    chunk = start_chunk + tl.program_id(0)
    row, numel, first, start, size = locate(fields, owners, chunk, CHUNK)
    if idle(row, rule):
        return
    streams, blocks = stream_pointers(row, start, PARAM, GRAD, EIGHT_BIT, ALIGNED), _blocks(numel, EIGHT_BIT)
    gain = _gradient_gain(partials, chunks, rule)
    inverse = _inverse_means(partials, chunks, first, numel, CHUNK, rule)
    now = moment(tl.load(tl.load(row + _STEP).to(tl.pointer_type(tl.float32))), rule)
    lanes, full, zeros = tl.arange(0, BLOCK), size // BLOCK * BLOCK, tl.zeros([BLOCK], tl.float32)
    sums = (zeros, zeros)
    for offset in range(0, full, BLOCK):
        sums = _update(sums, streams, blocks, offset + lanes, None, gain, inverse, now, rule)
    for offset in range(full, size, BLOCK):
        sums = _update(sums, streams, blocks, offset + lanes, offset + lanes < size, gain, inverse, now, rule)
    tl.store(partials + _UPDATES * chunks + chunk, tl.sum(sums[0]))
    tl.store(partials + _BASES * chunks + chunk, tl.sum(sums[1]))


@triton.jit
def _store_param(param, offsets, mask, values, word):
    """The parameter, rounded once. word: uint32, random, for stochastic rounding; else None."""
    if param.dtype.element_ty == tl.bfloat16:
        noise = nearest_even(values) if word is None else (word & 0xFFFF).to(tl.int32)
        values = rounded_to_bfloat16(values, noise)
    tl.store(param + offsets, values.to(param.dtype.element_ty), mask=mask)


@triton.jit
def _store_codes(codes, scales, offsets, mask, values, word, LEVELS: tl.constexpr, POWER: tl.constexpr):
    """One stream of 8-bit state. The scales of whole blocks beyond the tensor would be 0; they are not written."""
    BLOCK: tl.constexpr = values.shape[0]
    coded, largest = encode(values, word, LEVELS, POWER)
    tl.store(codes + offsets, coded.to(codes.dtype.element_ty), mask=mask)
    scales += tl.min(offsets, axis=0) // GROUP
    block = tl.arange(0, BLOCK // GROUP)
    if mask is None:
        tl.store(scales + block, largest)
    else:
        tl.store(scales + block, largest, mask=block < tl.cdiv(tl.sum(mask.to(tl.int32)), GROUP))


@triton.jit
def _apply(streams, blocks, offsets, mask, gain, inverse, now, keep, scale, draw, rule, STOCHASTIC: tl.constexpr):
    """draw: (seed, step, tensor, the chunk's first element), the counter of this chunk's random numbers."""
    words = (None, None, None, None)
    if STOCHASTIC or blocks is not None:
        element = (draw[3] + offsets).to(tl.uint32)
        zero = element * 0
        words = tl.philox(draw[0], element, zero + draw[1], zero, zero + draw[2])
    if blocks is None:
        update = load(streams[5], offsets, mask)
    else:
        a, m, v, _, update = _proposed(streams, blocks, offsets, mask, gain, inverse, now, rule)
        _store_codes(streams[2], streams[5], offsets, mask, a, words[1], 255, 2)
        _store_codes(streams[3], streams[5] + blocks, offsets, mask, m, words[2], 127, 2)
        _store_codes(streams[4], streams[5] + 2 * blocks, offsets, mask, v, words[3], 255, 4)
    param = keep * load(streams[0], offsets, mask) - scale * update
    _store_param(streams[0], offsets, mask, param, words[0] if STOCHASTIC else None)


@triton.jit(do_not_specialize=RUNTIME)
def apply_kernel(
    fields, owners, partials, chunks, start_chunk, rule, seed,
    PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr,
    STOCHASTIC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parameter's step; of 8-bit tensors the state's as well."""
    chunk = start_chunk + tl.program_id(0)
    row, numel, first, start, size = locate(fields, owners, chunk, CHUNK)
    if idle(row, rule):
        return
    streams, blocks = stream_pointers(row, start, PARAM, GRAD, EIGHT_BIT, ALIGNED), _blocks(numel, EIGHT_BIT)
    step = tl.load(tl.load(row + _STEP).to(tl.pointer_type(tl.float32)))
    now, gain, inverse = moment(step, rule), 1.0, (0.0, 0.0, 0.0)
    if EIGHT_BIT:
        gain = _gradient_gain(partials, chunks, rule)
        inverse = _inverse_means(partials, chunks, first, numel, CHUNK, rule)
    count = tl.cdiv(numel, CHUNK).to(tl.int32)
    update_squares = tally(partials, _UPDATES, chunks, first, count)
    base_squares = tally(partials, _BASES, chunks, first, count)
    lr = rule.lr
    if rule.lr_tensor is not None:
        lr = tl.load(rule.lr_tensor).to(tl.float32)
    scale, keep = lr * now[2] * homeostasis(update_squares, base_squares, numel, rule), 1.0
    if rule.parameter_decay is not None:
        keep = 1 - lr * rule.parameter_decay
    draw = (seed, step.to(tl.int32).to(tl.uint32), tl.load(row + _NUMBER).to(tl.uint32), start)
    lanes, full = tl.arange(0, BLOCK), size // BLOCK * BLOCK
    for offset in range(0, full, BLOCK):
        _apply(streams, blocks, offset + lanes, None, gain, inverse, now, keep, scale, draw, rule, STOCHASTIC)
    for offset in range(full, size, BLOCK):
        mask = offset + lanes < size
        _apply(streams, blocks, offset + lanes, mask, gain, inverse, now, keep, scale, draw, rule, STOCHASTIC)
