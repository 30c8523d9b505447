"""The launches of one fused NeuroPlastic step. A program works on one chunk of one tensor, block by block, in float32.

Sums over a tensor are float32 partial sums per chunk, which every consumer adds up in the same order: no atomics, so the same
inputs give the same bits. Bytes per float32 parameter, without coupled decay:

    signals_kernel   reads g, m, v; sums of |g| and r as they will be; counts the step                         12
    update_kernel    reads g, a, m, v; writes a, m, v, u; sums of u^2, base^2 and a                            32
    apply_kernel     reads u, p; writes p                                                                      12

The sum of a that signals_kernel needs is the one that update_kernel left a step ago. Where there is none, or something else
wrote a in between, signals_kernel reads a as well (4 more) and adds it up in the same order. With 8-bit state u is not kept:
update_kernel only sums, and apply_kernel computes everything again, writes it and leaves the sum of a.

update_kernel goes through the chunks backwards: it begins with those that the L2 cache still holds, and so does apply_kernel
after it.

Common arguments: fields int64 [tensors, FIELDS] and owners int64 [chunks] of a `pointer_tables.Plan`; partials float32
[SUMS, chunks]; start_chunk, the launch's first chunk; rule, a `plasticity_formulas.Rule`.
"""

import triton
import triton.language as tl

from .chunk_access import idle, load, locate, neurons_of, of_neurons, stream_pointers, tally
from .fused_eight_bit import GROUP, add_decoded
from .fused_formulas import (
    advance,
    gradient_gain,
    homeostasis,
    inverse_mean,
    memory,
    moment,
    nearest_even,
    proposal,
    rounded_to_bfloat16,
)
from .pointer_tables import GRAD, NUMBER, STEP
from .state_access import add_traces, no_traces, state, store_codes, sum_of_traces

_GRAD, _STEP, _NUMBER = tl.constexpr(GRAD), tl.constexpr(STEP), tl.constexpr(NUMBER)
SUMS = 6  # rows of the partial sums; _TRACES: of a before the step, _NEW_TRACES: after it
_TRACES, _NEW_TRACES, _MAGNITUDES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_MEMORIES, _UPDATES, _BASES = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)

RUNTIME = ("chunks", "start_chunk", "seed")  # integers that change without compiling anew


@triton.jit
def _inverse_means(partials, chunks, first, numel, CHUNK: tl.constexpr, rule):
    """`inverse_mean` of a, |g| and r; 0 for what is not used."""
    count = tl.cdiv(numel, CHUNK).to(tl.int32)
    of_trace, of_gradient, of_memory = 0.0, 0.0, 0.0
    if rule.signals != "none":
        magnitudes = tally(partials, _MAGNITUDES, chunks, first, count)
        of_gradient = inverse_mean(magnitudes, numel, rule)
    if rule.signals == "all":
        traces = rule.keep_trace * tally(partials, _TRACES, chunks, first, count) + rule.take_trace * magnitudes
        of_trace = inverse_mean(traces, numel, rule)
        of_memory = inverse_mean(tally(partials, _MEMORIES, chunks, first, count), numel, rule)
    return of_trace, of_gradient, of_memory


@triton.jit
def _gradient(streams, offsets, mask, gain, rule):
    g = load(streams[1], offsets, mask) * gain
    if rule.gradient_decay is not None:
        g += rule.gradient_decay * load(streams[0], offsets, mask)
    return g


@triton.jit
def _proposed(streams, blocks, offsets, mask, gain, inverse, now, rule):
    """a, m and v after the step; the base's step; u."""
    g = _gradient(streams, offsets, mask, gain, rule)
    a, m, v = state(streams, blocks, offsets, mask)
    a, m, v = advance(g, a, m, v, rule)
    base, update = proposal(g, a, m, v, inverse, now, rule)
    if rule.update_decay is not None:
        update += rule.update_decay * load(streams[0], offsets, mask)
    return a, m, v, base, update


@triton.jit
def _add_signals(sums, streams, blocks, offsets, mask, gain, rule):
    g = _gradient(streams, offsets, mask, gain, rule)
    if rule.signals == "all":
        a, m, v = state(streams, blocks, offsets, mask)
        a, m, v = advance(g, a, m, v, rule)
        return sums[0] + tl.abs(g), sums[1] + memory(m, v, rule)
    else:
        return sums[0] + tl.abs(g), sums[1]


@triton.jit(do_not_specialize=RUNTIME)
def signals_kernel(
    fields, owners, partials, chunks, start_chunk, rule, READ_TRACES: tl.constexpr,
    PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each chunk's sums of |g| and r, and if asked for of a; the first chunk of a tensor counts its step."""
    chunk = start_chunk + tl.program_id(0)
    row, numel, first, start, size = locate(fields, owners, chunk, CHUNK)
    streams = stream_pointers(row, start, PARAM, GRAD, EIGHT_BIT, ALIGNED)
    blocks = tl.cdiv(numel, GROUP) if EIGHT_BIT else None
    lanes, full, zeros = tl.arange(0, BLOCK), size // BLOCK * BLOCK, tl.zeros([BLOCK], tl.float32)
    if rule.signals == "all":
        kept = partials + _NEW_TRACES * chunks + chunk
        if READ_TRACES:
            total = no_traces(EIGHT_BIT, BLOCK)  # of idle tensors as well, so that every sum is there from now on
            for offset in range(0, full, BLOCK):
                total = add_traces(total, streams, offset + lanes, None, EIGHT_BIT)
            for offset in range(full, size, BLOCK):
                total = add_traces(total, streams, offset + lanes, offset + lanes < size, EIGHT_BIT)
            traces = sum_of_traces(total, EIGHT_BIT)
            tl.store(kept, traces)
        else:
            traces = tl.load(kept)
        tl.store(partials + _TRACES * chunks + chunk, traces)
    if idle(row, rule):
        return
    if chunk == first:
        step = tl.load(row + _STEP).to(tl.pointer_type(tl.float32))
        tl.store(step, tl.load(step) + 1)
    if rule.signals != "none":
        gain, sums = gradient_gain(rule), (zeros, zeros)
        for offset in range(0, full, BLOCK):
            sums = _add_signals(sums, streams, blocks, offset + lanes, None, gain, rule)
        for offset in range(full, size, BLOCK):
            sums = _add_signals(sums, streams, blocks, offset + lanes, offset + lanes < size, gain, rule)
        tl.store(partials + _MAGNITUDES * chunks + chunk, tl.sum(sums[0]))
        tl.store(partials + _MEMORIES * chunks + chunk, tl.sum(sums[1]))


@triton.jit
def _update(sums, streams, blocks, offsets, mask, gain, inverse, now, rule):
    a, m, v, base, update = _proposed(streams, blocks, offsets, mask, gain, inverse, now, rule)
    if blocks is None:
        tl.store(streams[2] + offsets, a, mask=mask)
        tl.store(streams[3] + offsets, m, mask=mask)
        tl.store(streams[4] + offsets, v, mask=mask)
        tl.store(streams[5] + offsets, update, mask=mask)
    return sums[0] + update * update, sums[1] + base * base, sums[2] + a


@triton.jit(do_not_specialize=RUNTIME)
def update_kernel(
    fields, owners, partials, chunks, start_chunk, rule,
    PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state's step and u; each chunk's sums of u^2, base^2 and the new a. 8-bit state is left to `apply_kernel`."""
    chunk = start_chunk + tl.num_programs(0) - 1 - tl.program_id(0)
    row, numel, first, start, size = locate(fields, owners, chunk, CHUNK)
    if idle(row, rule):
        return
    streams = stream_pointers(row, start, PARAM, GRAD, EIGHT_BIT, ALIGNED)
    blocks = tl.cdiv(numel, GROUP) if EIGHT_BIT else None
    gain = gradient_gain(rule)
    inverse = _inverse_means(partials, chunks, first, numel, CHUNK, rule)
    now = moment(tl.load(tl.load(row + _STEP).to(tl.pointer_type(tl.float32))), rule)
    lanes, full, zeros = tl.arange(0, BLOCK), size // BLOCK * BLOCK, tl.zeros([BLOCK], tl.float32)
    sums = (zeros, zeros, zeros)
    for offset in range(0, full, BLOCK):
        sums = _update(sums, streams, blocks, offset + lanes, None, gain, inverse, now, rule)
    for offset in range(full, size, BLOCK):
        sums = _update(sums, streams, blocks, offset + lanes, offset + lanes < size, gain, inverse, now, rule)
    tl.store(partials + _UPDATES * chunks + chunk, tl.sum(sums[0]))
    tl.store(partials + _BASES * chunks + chunk, tl.sum(sums[1]))
    if rule.signals == "all" and not EIGHT_BIT:
        tl.store(partials + _NEW_TRACES * chunks + chunk, sum_of_traces(sums[2], EIGHT_BIT))


@triton.jit
def _store_param(param, offsets, mask, values, word):
    """The parameter, rounded once. word: uint32, random, for stochastic rounding; else None."""
    if param.dtype.element_ty == tl.bfloat16:
        noise = nearest_even(values) if word is None else (word & 0xFFFF).to(tl.int32)
        values = rounded_to_bfloat16(values, noise)
    tl.store(param + offsets, values.to(param.dtype.element_ty), mask=mask)


@triton.jit
def _apply(
    total, streams, blocks, offsets, mask, gain, inverse, now, keep, scale, neurons, draw, rule, STOCHASTIC: tl.constexpr
):  # fmt: skip
    """`total` plus the new 8-bit a. draw: (seed, step, tensor, the chunk's first element), the counter of random numbers."""
    words = (None, None, None, None)
    if STOCHASTIC or blocks is not None:
        element = (draw[3] + offsets).to(tl.uint32)
        zero = element * 0
        words = tl.philox(draw[0], element, zero + draw[1], zero, zero + draw[2])
    if blocks is None:
        update = load(streams[5], offsets, mask)
    else:
        a, m, v, _, update = _proposed(streams, blocks, offsets, mask, gain, inverse, now, rule)
        coded, largest = store_codes(streams[2], streams[5], offsets, mask, a, words[1], 255, 2)
        total = add_decoded(total, coded, largest)
        store_codes(streams[3], streams[5] + blocks, offsets, mask, m, words[2], 127, 2)
        store_codes(streams[4], streams[5] + 2 * blocks, offsets, mask, v, words[3], 255, 4)
    param = keep * load(streams[0], offsets, mask) - scale * of_neurons(update, neurons, offsets, mask)
    _store_param(streams[0], offsets, mask, param, words[0] if STOCHASTIC else None)
    return total


@triton.jit(do_not_specialize=RUNTIME)
def apply_kernel(
    fields, owners, partials, chunks, start_chunk, rule, seed, STOCHASTIC: tl.constexpr,
    PARAM: tl.constexpr, GRAD: tl.constexpr, EIGHT_BIT: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parameter's step; of 8-bit tensors the state's as well, and each chunk's sum of the new a."""
    chunk = start_chunk + tl.program_id(0)
    row, numel, first, start, size = locate(fields, owners, chunk, CHUNK)
    if idle(row, rule):
        return
    streams = stream_pointers(row, start, PARAM, GRAD, EIGHT_BIT, ALIGNED)
    blocks = tl.cdiv(numel, GROUP) if EIGHT_BIT else None
    step = tl.load(tl.load(row + _STEP).to(tl.pointer_type(tl.float32)))
    now, gain, inverse = moment(step, rule), 1.0, (0.0, 0.0, 0.0)
    if EIGHT_BIT:
        gain = gradient_gain(rule)
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
    neurons = neurons_of(row, start)
    draw = (seed, step.to(tl.int32).to(tl.uint32), tl.load(row + _NUMBER).to(tl.uint32), start)
    lanes, full, total = tl.arange(0, BLOCK), size // BLOCK * BLOCK, no_traces(EIGHT_BIT, BLOCK)
    for offset in range(0, full, BLOCK):
        total = _apply(
            total, streams, blocks, offset + lanes, None, gain, inverse, now, keep, scale, neurons, draw, rule, STOCHASTIC
        )  # fmt: skip
    for offset in range(full, size, BLOCK):
        mask = offset + lanes < size
        total = _apply(
            total, streams, blocks, offset + lanes, mask, gain, inverse, now, keep, scale, neurons, draw, rule, STOCHASTIC
        )  # fmt: skip
    if EIGHT_BIT and rule.signals == "all":
        tl.store(partials + _NEW_TRACES * chunks + chunk, sum_of_traces(total, EIGHT_BIT))
