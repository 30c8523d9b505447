"""What new neurons are modelled on, inside the kernels of `neuron_reinit`: `neurons.templates` and its means and deviations.

A sample is walked by position: GROUP neighbours of each of `taken` groups, so that no program looks at the neurons between.
"""

import triton
import triton.language as tl

from ..common.typed_memory import load_as_float
from .neurons import GROUP
from .table import PARTIAL_NEURONS, Item

(
    ADDRESS,
    DTYPE,
    ROLE,
    NEURONS,
    LANES,
    NEURON_STRIDE,
    LANE_STRIDE,
    ENTRIES,
    FIRST_ENTRY,
    ENTRY_STEP,
    START,
    GROUPS,
    TAKEN,
    SITE,
    WORD,
    BIAS,
    BIAS_DTYPE,
    BIAS_STRIDE,
    PROGRAMS,
    FIRST_PARTIAL,
    WEIGHT_FIRST_PARTIAL,
    WEIGHT_PARTIALS,
) = (tl.constexpr(position) for position in range(len(Item._fields)))
FIELDS = tl.constexpr(len(Item._fields))

SCAN = tl.constexpr(1024)  # flags looked at together
STATISTICS_NEURONS, STATISTICS_LANES = tl.constexpr(PARTIAL_NEURONS), tl.constexpr(128)
COUNT, CENTRE, SQUARES = (tl.constexpr(position) for position in range(3))
PARTIAL = tl.constexpr(3)
_GROUP = tl.constexpr(GROUP)


@triton.jit
def flags(address, neuron, stop):
    """The booleans (int8) of these neurons, false from `stop` on."""
    return tl.load(address + neuron, mask=neuron < stop, other=0) != 0


@triton.jit
def count_flags(address, start, stop):
    """How many of the booleans from `start` to `stop` are set."""
    found = tl.zeros([SCAN], tl.int32)
    for first in range(start, stop, SCAN):
        found += flags(address, first + tl.arange(0, SCAN), stop).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def _neuron_at(position, groups, taken):
    return position // _GROUP * groups // taken * _GROUP + position % _GROUP


@triton.jit
def find_templates(item, survivors):
    """How to walk the models: (groups, taken, positions, how many there are). survivors: flags of the site's neurons."""
    neurons, groups = tl.load(item + NEURONS).to(tl.int32), tl.load(item + GROUPS).to(tl.int32)
    taken = tl.load(item + TAKEN).to(tl.int32)
    positions = taken * _GROUP
    found = tl.zeros([SCAN], tl.int32)
    for first in range(0, positions, SCAN):
        position = first + tl.arange(0, SCAN)
        sampled = flags(survivors, _neuron_at(position, groups, taken), neurons) & (position < positions)
        found += sampled.to(tl.int32)
    count = tl.sum(found, 0)
    if count == 0:  # none in the sample: all survivors; then a position is its neuron
        groups, taken, positions = groups * 0 + 1, taken * 0 + 1, neurons
        count = count_flags(survivors, 0, neurons)
    return groups, taken, positions, count


@triton.jit
def templates_at(position, walk, survivors, neurons):
    """The neurons at these positions, and which of them are models: all neurons where nobody survives."""
    groups, taken, positions, count = walk
    neuron = _neuron_at(position, groups, taken)
    inside = (position < positions) & (neuron < neurons)
    return neuron, inside & (flags(survivors, neuron, neurons) | (count == 0))


@triton.jit
def by_neuron(values, AXIS: tl.constexpr):
    """[neurons] values along the axis of a tile that counts neurons."""
    return tl.expand_dims(values, 1 - AXIS)


@triton.jit
def by_lane(values, AXIS: tl.constexpr):
    return tl.expand_dims(values, AXIS)


@triton.jit
def templates_mean(
    item, survivors, lane_offset, lane_valid, AXIS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr
):
    """Mean over the models for each lane of the block."""
    address, dtype, neurons = tl.load(item + ADDRESS), tl.load(item + DTYPE), tl.load(item + NEURONS).to(tl.int32)
    walk = find_templates(item, survivors)
    total = tl.zeros([BLOCK_N, BLOCK_L] if AXIS == 0 else [BLOCK_L, BLOCK_N], tl.float32)
    for first in range(0, walk[2], BLOCK_N):
        neuron, kept = templates_at(first + tl.arange(0, BLOCK_N), walk, survivors, neurons)
        offset = by_neuron(neuron.to(tl.int64) * tl.load(item + NEURON_STRIDE), AXIS) + by_lane(lane_offset, AXIS)
        total += load_as_float(address, offset, by_neuron(kept, AXIS) & by_lane(lane_valid, AXIS), dtype)
    return tl.sum(total, AXIS) / tl.where(walk[3] == 0, neurons, walk[3]).to(tl.float32)


@triton.jit
def weight_statistics(item, partials, PARTIALS: tl.constexpr):
    """Mean and deviation of the templates' rows, from the partials of a weight. PARTIALS: their number or more."""
    part = tl.arange(0, PARTIALS)
    needed = part < tl.load(item + WEIGHT_PARTIALS)
    base = partials + (tl.load(item + WEIGHT_FIRST_PARTIAL) + part) * PARTIAL
    rows = tl.load(base + COUNT, mask=needed, other=0.0)
    centre = tl.load(base + CENTRE, mask=needed, other=0.0)
    spread = tl.load(base + SQUARES, mask=needed, other=0.0)
    count = tl.sum(rows, 0)
    mean = tl.sum(rows * centre, 0) / count
    # Chan, Golub and LeVeque's rule for joining the variances of partials, which have equally many lanes.
    return mean, tl.sqrt_rn(tl.sum(spread + rows * (centre - mean) * (centre - mean), 0) / count)


@triton.jit(do_not_specialize=["first_item"])
def statistics_kernel(
    items,  # [all, FIELDS] int64
    first_item,
    masks,  # [neurons of all sites] int8, like survivors
    survivors,
    partials,  # [partials of all weights, PARTIAL] float32, written for sites with a chosen neuron
):
    """Per part of the models: how many there are, the mean of their rows, and the sum of squares about it, per lane."""
    item, part = items + (first_item + tl.program_id(0)) * FIELDS, tl.program_id(1)
    neurons, lanes, start = (
        tl.load(item + NEURONS).to(tl.int32),
        tl.load(item + LANES).to(tl.int32),
        tl.load(item + START),
    )
    if part * STATISTICS_NEURONS < neurons:  # noqa: SIM102  (`and` would count all the same)
        if count_flags(masks + start, 0, neurons) > 0:
            position = part * STATISTICS_NEURONS + tl.arange(0, STATISTICS_NEURONS)
            neuron, kept = templates_at(position, find_templates(item, survivors + start), survivors + start, neurons)
            rows = tl.sum(kept.to(tl.float32), 0)
            centre, spread = rows * 0.0, rows * 0.0
            if rows > 0:
                elements = rows * lanes.to(tl.float32)
                centre = tl.sum(tl.sum(_weight_sums(item, neuron, kept, 0.0, False), 1), 0) / elements
                spread = tl.sum(tl.sum(_weight_sums(item, neuron, kept, centre, True), 1), 0) / lanes.to(tl.float32)
            out = partials + (tl.load(item + FIRST_PARTIAL) + part) * PARTIAL
            tl.store(out + COUNT, rows)
            tl.store(out + CENTRE, centre)
            tl.store(out + SQUARES, spread)


@triton.jit
def _weight_sums(item, neuron, kept, centre, SQUARED: tl.constexpr):
    """[STATISTICS_NEURONS, STATISTICS_LANES] sums over blocks of lanes of x - centre, or of its square, for the kept rows."""
    lanes, address, dtype = tl.load(item + LANES).to(tl.int32), tl.load(item + ADDRESS), tl.load(item + DTYPE)
    row_offset = (neuron.to(tl.int64) * tl.load(item + NEURON_STRIDE))[:, None]
    total = tl.zeros([STATISTICS_NEURONS, STATISTICS_LANES], tl.float32)
    for first in range(0, lanes, STATISTICS_LANES):
        lane = first + tl.arange(0, STATISTICS_LANES)
        inside = kept[:, None] & (lane < lanes)[None, :]
        offset = row_offset + (lane.to(tl.int64) * tl.load(item + LANE_STRIDE))[None, :]
        x = tl.where(inside, load_as_float(address, offset, inside, dtype) - centre, 0.0)
        total += x * x if SQUARED else x
    return total
