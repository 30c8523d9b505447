"""The two launches of the fused `neuron_reinit`. Fields and roles of a tensor are those of `neuron_table`.

statistics_kernel   init="layer" only: parts of the survivors' statistics, for sites with a chosen neuron
reinit_kernel       everything else
"""

import triton
import triton.language as tl

from ..reference.neuron_reinit import SPLIT_SHARE, UP_WEIGHT
from .neuron_table import BIAS, COLUMNS, MEAN, ROWS, Item
from .philox import normal, uniform
from .typed_memory import load_as_float, round_as, store_float

_ROWS, _BIAS, _COLUMNS, _MEAN = (tl.constexpr(role) for role in (ROWS, BIAS, COLUMNS, MEAN))
_UP_WEIGHT, _SPLIT_SHARE = tl.constexpr(UP_WEIGHT), tl.constexpr(SPLIT_SHARE)
(
    ADDRESS, DTYPE, ROLE, NEURONS, LANES, NEURON_STRIDE, LANE_STRIDE, MASK, SURVIVORS, DONORS, SITE, PLACE,
    BIAS_ADDRESS, BIAS_DTYPE, BIAS_STRIDE, MEAN_OUTPUT, SHARES,
) = (tl.constexpr(position) for position in range(len(Item._fields)))  # fmt: skip
FIELDS = tl.constexpr(len(Item._fields))

# Tiles: neurons x lanes where lanes lie side by side in memory (up rows), lanes x neurons where neurons do (down columns).
ROW_NEURONS, ROW_LANES = tl.constexpr(8), tl.constexpr(128)
COLUMN_NEURONS, COLUMN_LANES = tl.constexpr(32), tl.constexpr(32)
SCAN = tl.constexpr(1024)  # mask entries looked at together
STATISTICS_ROWS = tl.constexpr(32)  # neurons per program of the statistics for init="layer"
COUNT, CENTRE, SPREAD, BIAS_SUM = (tl.constexpr(position) for position in range(4))
PART = tl.constexpr(4)


@triton.jit
def _flags(address, neuron, stop):
    return tl.load(address.to(tl.pointer_type(tl.int8)) + neuron, mask=neuron < stop, other=0) != 0


@triton.jit
def _by_neuron(values, AXIS: tl.constexpr):
    """[neurons] values along the axis of a tile that counts neurons."""
    return tl.expand_dims(values, 1 - AXIS)


@triton.jit
def _by_lane(values, AXIS: tl.constexpr):
    return tl.expand_dims(values, AXIS)


@triton.jit
def _count(flags, start, stop):
    """How many of the booleans from `start` to `stop` are set. flags: address."""
    found = tl.zeros([SCAN], tl.int32)
    for first in range(start, stop, SCAN):
        found += _flags(flags, first + tl.arange(0, SCAN), stop).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def _survivors_mean(item, lane_offset, lane_valid, AXIS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr):
    """Mean over the surviving neurons (over all, if none survives) for each lane of the block."""
    address, dtype, neurons = tl.load(item + ADDRESS), tl.load(item + DTYPE), tl.load(item + NEURONS).to(tl.int32)
    survivors = tl.load(item + SURVIVORS)
    alive = _count(survivors, 0, neurons)
    total = tl.zeros([BLOCK_N, BLOCK_L] if AXIS == 0 else [BLOCK_L, BLOCK_N], tl.float32)
    for first in range(0, neurons, BLOCK_N):
        neuron = first + tl.arange(0, BLOCK_N)
        kept = _flags(survivors, neuron, neurons) | ((alive == 0) & (neuron < neurons))
        offset = _by_neuron(neuron.to(tl.int64) * tl.load(item + NEURON_STRIDE), AXIS) + _by_lane(lane_offset, AXIS)
        inside = _by_neuron(kept, AXIS) & _by_lane(lane_valid, AXIS)
        total += load_as_float(address, offset, inside, dtype)
    return tl.sum(total, AXIS) / tl.where(alive == 0, neurons, alive).to(tl.float32)


@triton.jit
def _layer_statistics(item, parts, PARTS: tl.constexpr):
    """Mean and deviation of the surviving rows, and their mean bias, from the parts of a site; [PARTS] is a power of two."""
    part = tl.arange(0, PARTS)
    needed = part * STATISTICS_ROWS < tl.load(item + NEURONS)
    base = parts + (tl.load(item + PLACE) * PARTS + part) * PART
    rows = tl.load(base + COUNT, mask=needed, other=0.0)
    centre = tl.load(base + CENTRE, mask=needed, other=0.0)
    spread = tl.load(base + SPREAD, mask=needed, other=0.0)
    bias = tl.sum(tl.load(base + BIAS_SUM, mask=needed, other=0.0), 0)
    count = tl.sum(rows, 0)
    mean = tl.sum(rows * centre, 0) / count
    # Chan, Golub and LeVeque's rule for joining the variances of parts.
    variance = tl.sum(spread + rows * (centre - mean) * (centre - mean), 0) / count
    return mean, tl.sqrt_rn(variance), bias / count


@triton.jit
def _targets(
    item, parts, std, lane_offset, lane_valid,
    INIT: tl.constexpr, PARTS: tl.constexpr, AXIS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Mean and deviation of new rows, and [BLOCK_L] what other tensors are filled with."""
    role = tl.load(item + ROLE)
    centre, deviation = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32) + std
    fill = tl.zeros([BLOCK_L], tl.float32)
    if INIT == "fan_in":
        deviation = 1.0 / tl.sqrt_rn(tl.load(item + LANES).to(tl.float32) * 3.0)
    if INIT == "layer":  # noqa: SIM102  (known when the kernel is compiled; the role is not)
        if role <= _BIAS:
            centre, deviation, bias = _layer_statistics(item, parts, PARTS)
            if role == _BIAS:
                fill += bias
    if role == _MEAN:
        fill += _survivors_mean(item, lane_offset, lane_valid, AXIS, BLOCK_N, BLOCK_L)
    return centre, deviation, fill


@triton.jit
def _split_from_donor(
    address, offset, index, chosen, todo, neuron, lane_offset, donors, neuron_stride, dtype, role, seed, event, site,
    AXIS: tl.constexpr,
):  # fmt: skip
    """What the chosen neurons get from their donors; an outgoing column is shared, and the donor's own part written."""
    donor = tl.load(donors.to(tl.pointer_type(tl.int64)) + neuron, mask=chosen, other=0) * neuron_stride
    donor_offset = _by_neuron(donor, AXIS) + _by_lane(lane_offset, AXIS)
    value = load_as_float(address, donor_offset, todo, dtype)
    if role == _COLUMNS:
        whole = value
        share = uniform(seed, index, event, site, _SPLIT_SHARE) * 0.2 + 0.4
        value = round_as(whole * share, dtype)
        store_float(address, donor_offset, whole - value, todo, dtype)
    return value


@triton.jit
def _reinit(
    item,
    block,
    parts,
    std,
    seed,
    event,
    INIT: tl.constexpr,
    SILENCE: tl.constexpr,
    PARTS: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Does one block of lanes, and its share of the neurons, of one tensor. AXIS: which axis of a tile counts the neurons."""
    neurons, lanes = tl.load(item + NEURONS).to(tl.int32), tl.load(item + LANES).to(tl.int32)
    shares, mask = tl.load(item + SHARES).to(tl.int32), tl.load(item + MASK)
    lane_blocks = tl.cdiv(lanes, BLOCK_L)
    length = tl.cdiv(neurons, shares * BLOCK_N) * BLOCK_N
    start = (block // lane_blocks) * length
    stop = tl.minimum(start + length, neurons)
    if _count(mask, start, stop) > 0:
        address, dtype, role = tl.load(item + ADDRESS), tl.load(item + DTYPE), tl.load(item + ROLE)
        site, donors, neuron_stride = tl.load(item + SITE), tl.load(item + DONORS), tl.load(item + NEURON_STRIDE)
        bias, mean_output = tl.load(item + BIAS_ADDRESS), tl.load(item + MEAN_OUTPUT)
        lane = (block % lane_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
        lane_valid = lane < lanes
        lane_offset = lane.to(tl.int64) * tl.load(item + LANE_STRIDE)
        centre, deviation, fill = _targets(
            item, parts, std, lane_offset, lane_valid, INIT, PARTS, AXIS, BLOCK_N, BLOCK_L
        )
        folds = (role == _COLUMNS) & (bias != 0) & (mean_output != 0) & SILENCE
        folded = tl.zeros([BLOCK_L], tl.float32)
        for first in range(start, stop, BLOCK_N):
            neuron = first + tl.arange(0, BLOCK_N)
            chosen = _flags(mask, neuron, stop)
            if tl.max(chosen.to(tl.int32), 0) > 0:
                todo = _by_neuron(chosen, AXIS) & _by_lane(lane_valid, AXIS)
                offset = _by_neuron(neuron.to(tl.int64) * neuron_stride, AXIS) + _by_lane(lane_offset, AXIS)
                # Logical place of an element among those of its tensor, neuron by neuron: the counter of its random number.
                index = _by_neuron(neuron.to(tl.int64) * lanes, AXIS) + _by_lane(lane, AXIS)
                if folds:
                    weight = tl.load(mean_output.to(tl.pointer_type(tl.float32)) + neuron, mask=chosen, other=0.0)
                    old = load_as_float(address, offset, todo, dtype)
                    folded += tl.sum(old * _by_neuron(weight, AXIS), AXIS)
                value = index.to(tl.float32) * 0.0 + _by_lane(fill, AXIS)
                if INIT == "split":
                    if role <= _COLUMNS:
                        value = _split_from_donor(
                            address, offset, index, chosen, todo, neuron, lane_offset, donors, neuron_stride, dtype, role,
                            seed, event, site, AXIS,
                        )  # fmt: skip
                elif INIT != "zero":  # noqa: SIM102
                    if role == _ROWS:
                        value = normal(seed, index, event, site, _UP_WEIGHT) * deviation + centre
                store_float(address, offset, value, todo, dtype)
        if folds:
            place, bias_dtype = lane.to(tl.int64) * tl.load(item + BIAS_STRIDE), tl.load(item + BIAS_DTYPE)
            folded += load_as_float(bias, place, lane_valid, bias_dtype)
            store_float(bias, place, folded, lane_valid, bias_dtype)


@triton.jit(do_not_specialize=["seed", "event"])
def reinit_kernel(
    items,  # [tensors, FIELDS] int64
    parts,  # [sites, PARTS, PART] float32, or None unless INIT is "layer"
    std,
    seed,
    event,
    INIT: tl.constexpr,
    SILENCE: tl.constexpr,  # the chosen neurons' outgoing columns become zero
    PARTS: tl.constexpr,
):
    item, block, seed = items + tl.program_id(0) * FIELDS, tl.program_id(1), seed.to(tl.int64)
    if tl.load(item + LANE_STRIDE) < tl.load(item + NEURON_STRIDE):
        _reinit(item, block, parts, std, seed, event, INIT, SILENCE, PARTS, 0, ROW_NEURONS, ROW_LANES)
    else:
        _reinit(item, block, parts, std, seed, event, INIT, SILENCE, PARTS, 1, COLUMN_NEURONS, COLUMN_LANES)


@triton.jit
def statistics_kernel(
    items,  # [tensors, FIELDS] int64
    parts,  # [sites, PARTS, PART] float32, written for sites with a chosen neuron
    PARTS: tl.constexpr,
):
    """Per block of an up weight's rows: how many survive (all count if none does), their mean, deviation, sum of biases."""
    item, part = items + tl.program_id(0) * FIELDS, tl.program_id(1)
    neurons, lanes = tl.load(item + NEURONS).to(tl.int32), tl.load(item + LANES).to(tl.int32)
    start = part * STATISTICS_ROWS
    if (tl.load(item + ROLE) == _ROWS) & (start < neurons):  # noqa: SIM102  (`and` would count all the same)
        if _count(tl.load(item + MASK), 0, neurons) > 0:
            survivors = tl.load(item + SURVIVORS)
            neuron = start + tl.arange(0, STATISTICS_ROWS)
            kept = _flags(survivors, neuron, neurons)
            kept = kept | ((_count(survivors, 0, neurons) == 0) & (neuron < neurons))
            rows = tl.sum(kept.to(tl.float32), 0)
            elements = tl.maximum(rows, 1.0) * lanes.to(tl.float32)
            centre = tl.sum(tl.sum(_row_sums(item, neuron, kept, 0.0, False), 1), 0) / elements
            spread = tl.sum(tl.sum(_row_sums(item, neuron, kept, centre, True), 1), 0) / lanes.to(tl.float32)
            bias, bias_sum = tl.load(item + BIAS_ADDRESS), tl.zeros([STATISTICS_ROWS], tl.float32)
            if bias != 0:
                place = neuron.to(tl.int64) * tl.load(item + BIAS_STRIDE)
                bias_sum += load_as_float(bias, place, kept, tl.load(item + BIAS_DTYPE))
            out = parts + (tl.load(item + PLACE) * PARTS + part) * PART
            tl.store(out + COUNT, rows)
            tl.store(out + CENTRE, centre)
            tl.store(out + SPREAD, spread)
            tl.store(out + BIAS_SUM, tl.sum(bias_sum, 0))


@triton.jit
def _row_sums(item, neuron, kept, centre, SQUARED: tl.constexpr):
    """[STATISTICS_ROWS, ROW_LANES] sums over blocks of lanes of x - centre, or of its square, for the kept rows."""
    lanes, address, dtype = tl.load(item + LANES).to(tl.int32), tl.load(item + ADDRESS), tl.load(item + DTYPE)
    row_offset = (neuron.to(tl.int64) * tl.load(item + NEURON_STRIDE))[:, None]
    total = tl.zeros([STATISTICS_ROWS, ROW_LANES], tl.float32)
    for first in range(0, lanes, ROW_LANES):
        lane = first + tl.arange(0, ROW_LANES)
        inside = kept[:, None] & (lane < lanes)[None, :]
        offset = row_offset + (lane.to(tl.int64) * tl.load(item + LANE_STRIDE))[None, :]
        x = tl.where(inside, load_as_float(address, offset, inside, dtype) - centre, 0.0)
        total += x * x if SQUARED else x
    return total
