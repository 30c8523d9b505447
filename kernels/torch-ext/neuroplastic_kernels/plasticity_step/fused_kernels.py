"""The two kernels of a fused step. All arithmetic is in float32.

`step_kernel` works on one chunk of one tensor, block by block, in one of four modes:

    "apply"     the step itself, with alpha and h of the sums in `sums`; leaves the chunk's own part of such sums
    "signals"   changes nothing; the chunk's part of the sums of activity, |g| and |r|
    "squares"   changes nothing; the chunk's part of the sums of base^2 and update^2, with alpha of the sums in `sums`
    "check"     changes nothing; the chunk's non-finite gradients

`join_kernel` adds the parts up, in fixed order, into `sums`: no atomics, so the same inputs give the same bits. A step with
statistics "previous" is "apply"; an exact one is "signals", "squares", "apply", each but the last seeing what the one before
left in `sums`. Where tensors with non-finite gradients are to be skipped, "check" comes first and finds them.

Bytes per float32 parameter of "apply": reads p, g, m, v and writes p, m, v, 28; a trace takes 8 more. With 8-bit state, 16
and a 16th, with a trace 18 and a 10th. "signals" reads g, m, v, "squares" too, and p for coupled decay; "check" reads g.
"""

import triton
import triton.language as tl

from . import reference
from .fused_formulas import (
    average,
    base_and_signals,
    coefficient,
    corrections,
    gradient_gain,
    homeostasis,
    modulation,
    rates,
)
from .fused_storage import load, load_moment, store_moment, store_param
from .tables import Row

(PARAM, EXP_AVG, EXP_AVG_SQ, TRACE, SCALES, SUMS, NONFINITE, STEP, SKIPPED, FACTORS, NEURONS, STRIDE, NUMEL, WHOLE, ORIGIN,
 FIRST, CHUNKS, NUMBER) = (tl.constexpr(place) for place in range(len(Row._fields)))  # fmt: skip
COLUMNS = tl.constexpr(len(Row._fields))
_SUMS = tl.constexpr(reference.SUMS)
_BAD = tl.constexpr(reference.UPDATE_SQUARED)  # non-finite gradients are counted where update^2 will be
_VALUES = tl.constexpr(4)  # of a block that a thread holds
_PARTS = tl.constexpr(512)  # chunks joined at a time


@triton.jit
def _floats(address):
    return tl.load(address).to(tl.pointer_type(tl.float32))


@triton.jit
def _is_idle(gradients, tensor, rule):
    """Whether a tensor stays as it is: without a gradient, or after an overflow."""
    idle = tl.load(gradients + tensor) == 0
    if rule.found_inf is not None:
        idle |= tl.load(rule.found_inf) != 0
    return idle


@triton.jit
def _is_skipped(row, rule, MODE: tl.constexpr):
    skipped = False
    if rule.skips and MODE != "check":
        skipped = tl.load(_floats(row + NONFINITE)) != 0
    return skipped


@triton.jit
def _stream(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to element `start` of a tensor. address: pointer to where its address stands."""
    pointer = tl.load(address).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _write(streams, scales, offset, size, mask, p, m, v, a, draw, STOCHASTIC: tl.constexpr, GROUP: tl.constexpr):
    """Stores a block after its step. draw: seed, the chunk's first element in the whole tensor, step and tensor, of random
    numbers."""
    offsets = offset + tl.arange(0, p.shape[0])
    words = (None, None, None, None)
    if STOCHASTIC or scales[0] is not None:
        seed, start, step, number = draw
        element = (start + offsets).to(tl.uint32)
        zero = element * 0
        words = tl.philox(seed, element, zero + step, zero, zero + number)
    store_param(streams[0], offsets, mask, p, words[0] if STOCHASTIC else None)
    store_moment(streams[2], scales[0], offset, size, mask, m, words[1], 127, 2, GROUP)
    store_moment(streams[3], scales[1], offset, size, mask, v, words[2], 255, 4, GROUP)
    if a is not None:
        store_moment(streams[4], scales[2], offset, size, mask, a, words[3], 255, 2, GROUP)


@triton.jit
def _neurons(row, start):
    """The neurons of a chunk from `start` on: address of factors (0 for none), first neuron, elements of it before the chunk,
    distance between neurons, their number."""
    stride, count = tl.load(row + STRIDE), tl.load(row + NEURONS)
    return tl.load(row + FACTORS), (start // stride % count).to(tl.int32), (start % stride).to(tl.int32), stride, count


@triton.jit
def _of_neurons(x, neurons, offsets, mask):
    """x times the factor of each element's neuron, where there are factors."""
    factors, first, before, stride, count = neurons
    if factors != 0:
        index = (first + (before + offsets) // stride.to(tl.int32)) % count.to(tl.int32)
        x *= load(factors.to(tl.pointer_type(tl.float32)), index, mask)
    return x


@triton.jit
def _added(total, x, mask):
    """`total` [BLOCK / VALUES] plus x [BLOCK]. The values of a thread are added at once: it keeps a single sum."""
    x = x if mask is None else tl.where(mask, x, 0.0)
    return total + tl.sum(tl.reshape(x, [total.shape[0], _VALUES]), axis=1)


@triton.jit
def _block(
    totals,
    parts,
    offset,
    now,
    rule,
    MODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    """The block at `offset` of a chunk; `totals` plus its part. FULL: not cut short by the chunk's end.

    parts: pointers to the chunk's p, g, m, v and a, which is None without a trace; to the scales of m, v and a, None unless in
    8 bits; the chunk's elements, `_neurons`, and `_write`'s draw. now: `gradient_gain`, `corrections`, `modulation`, h and
    `rates`.
    """
    streams, scales, size, neurons, draw = parts
    gain, correct, modulated, h, lr, keep = now
    offsets = offset + tl.arange(0, BLOCK)
    mask = None if FULL else offsets < size
    activities, gradients, memories, bases, updates = totals
    g, p = load(streams[1], offsets, mask) * gain, None
    if MODE == "apply" or (MODE != "check" and rule.coupled is not None):
        p = load(streams[0], offsets, mask)
    if MODE == "check":
        updates = _added(updates, tl.where(tl.abs(g) < float("inf"), 0.0, 1.0), mask)
    if MODE != "check":
        if rule.coupled is not None and rule.base != "gradient":
            g += rule.coupled * p
        m = average(load_moment(streams[2], scales[0], offsets, mask, 127, 2, GROUP), g, rule.of_m)
        v = rule.of_v.keep * load_moment(streams[3], scales[1], offsets, mask, 255, 4, GROUP) + rule.of_v.take * g * g
        a = None
        if streams[4] is not None:
            a = average(load_moment(streams[4], scales[2], offsets, mask, 255, 2, GROUP), tl.abs(g), rule.of_a)
        base, signals = base_and_signals(g, m, v, a, correct, rule)
        update = base
        if rule.plastic and MODE != "signals":
            update = base * coefficient(signals, modulated, rule)
            if rule.coupled is not None and rule.base == "gradient":
                update += rule.coupled * p
        if MODE == "signals" or (MODE == "apply" and rule.plastic and not rule.exact):
            activities = _added(activities, signals[0], mask)
            gradients = _added(gradients, signals[1], mask)
            memories = _added(memories, signals[2], mask)
        if MODE == "squares" or (MODE == "apply" and rule.plastic and not rule.exact):
            bases = _added(bases, base * base, mask)
            updates = _added(updates, update * update, mask)
        if MODE == "apply":
            p = keep * p - lr * _of_neurons(update * h, neurons, offsets, mask)
            _write(streams, scales, offset, size, mask, p, m, v, a, draw, STOCHASTIC, GROUP)
    return activities, gradients, memories, bases, updates


@triton.jit(do_not_specialize=["start_chunk", "seed"])
def step_kernel(
    fields,  # int64 [tensors, COLUMNS]: the rows of a `tables.Table`
    gradients,  # int64 [tensors]: addresses of gradients, 0 for none
    owners,  # int64 [chunks]: each chunk's tensor
    partials,  # float32 [chunks, SUMS]
    start_chunk, seed, rule, MODE: tl.constexpr, STOCHASTIC: tl.constexpr,
    PARAM_DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr, TRACES: tl.constexpr, GROUP: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk in one mode. start_chunk: of the launch; seed: of random numbers; rule: a `fused_formulas.Rule`; GROUP:
    elements of a block of 8-bit state, 0 for none."""
    chunk = start_chunk + tl.program_id(0)
    tensor = tl.load(owners + chunk)
    row = fields + tensor * COLUMNS
    if _is_idle(gradients, tensor, rule) | _is_skipped(row, rule, MODE):
        return
    numel, start = tl.load(row + NUMEL), (chunk - tl.load(row + FIRST)) * CHUNK
    size = tl.minimum(numel - start, CHUNK).to(tl.int32)
    SIGNED: tl.constexpr = tl.int8 if GROUP else tl.float32
    UNSIGNED: tl.constexpr = tl.uint8 if GROUP else tl.float32
    streams = (
        _stream(row + PARAM, start, PARAM_DTYPE, ALIGNED),
        _stream(gradients + tensor, start, GRAD_DTYPE, ALIGNED),
        _stream(row + EXP_AVG, start, SIGNED, ALIGNED),
        _stream(row + EXP_AVG_SQ, start, UNSIGNED, ALIGNED),
        _stream(row + TRACE, start, UNSIGNED, ALIGNED) if TRACES else None,
    )
    scales = (None, None, None)
    if GROUP:
        first, groups = _floats(row + SCALES) + start // GROUP, tl.cdiv(numel, GROUP)
        scales = (first, first + groups, first + 2 * groups)
    step, sums = tl.load(_floats(row + STEP)) + 1, _floats(row + SUMS)
    lr, keep = rates(rule)
    modulated, h, count = (None, None, None), 1.0, tl.load(row + WHOLE).to(tl.float32)
    if rule.plastic and (MODE == "apply" or MODE == "squares"):
        modulated = modulation(sums, count, step, rule)
    if rule.plastic and MODE == "apply":
        h = homeostasis(sums, count, modulated[2], rule)
    now = (gradient_gain(rule), corrections(step, rule), modulated, h, lr, keep)
    draw = (seed, tl.load(row + ORIGIN) + start, step.to(tl.int32).to(tl.uint32), tl.load(row + NUMBER).to(tl.uint32))
    neurons, zeros = _neurons(row, start), tl.zeros([BLOCK // _VALUES], tl.float32)
    totals, whole = (zeros, zeros, zeros, zeros, zeros), size // BLOCK * BLOCK
    parts = streams, scales, size, neurons, draw
    for offset in range(0, whole, BLOCK):
        totals = _block(totals, parts, offset, now, rule, MODE, STOCHASTIC, GROUP, BLOCK, True)
    for offset in range(whole, size, BLOCK):
        totals = _block(totals, parts, offset, now, rule, MODE, STOCHASTIC, GROUP, BLOCK, False)
    for k in tl.static_range(_SUMS):
        tl.store(partials + chunk * _SUMS + k, tl.sum(totals[k]))


@triton.jit
def join_kernel(
    fields,  # int64 [tensors, COLUMNS]
    gradients,  # int64 [tensors]
    partials,  # float32 [chunks, SUMS]
    rule, MODE: tl.constexpr,
):  # fmt: skip
    """What follows `step_kernel` of the same mode, for one tensor: its sums, its step counter, whether it is to be skipped."""
    tensor = tl.program_id(0)
    row = fields + tensor * COLUMNS
    if _is_idle(gradients, tensor, rule):
        return
    if _is_skipped(row, rule, MODE):
        if MODE == "apply":
            skipped = _floats(row + SKIPPED)
            tl.store(skipped, tl.load(skipped) + 1)
        return
    count, parts = tl.load(row + CHUNKS), partials + tl.load(row + FIRST) * _SUMS
    columns, rows = tl.arange(0, 8), tl.arange(0, _PARTS)
    totals = tl.zeros([_PARTS, 8], tl.float32)
    if rule.plastic or MODE == "check":
        for done in range(0, count, _PARTS):
            here = (done + rows < count)[:, None] & (columns < _SUMS)[None, :]
            totals += tl.load(parts + (done + rows)[:, None] * _SUMS + columns[None, :], mask=here, other=0.0)
    sums = tl.sum(totals, axis=0)
    start, stop = 0, _SUMS
    if MODE == "signals":
        stop = 3
    elif MODE == "squares":
        start = 3
    elif MODE == "check" or rule.exact:
        stop = 0
    if MODE == "check":
        tl.store(_floats(row + NONFINITE), tl.sum(tl.where(columns == _BAD, sums, 0.0)))
    kept = (columns >= start) & (columns < stop) & (tl.load(row + WHOLE) > 0)
    tl.store(_floats(row + SUMS) + columns, sums, mask=kept)
    if MODE == "apply":
        step = _floats(row + STEP)
        tl.store(step, tl.load(step) + 1)
