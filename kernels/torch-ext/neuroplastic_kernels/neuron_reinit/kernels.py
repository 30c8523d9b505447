"""The kernel that gives the chosen neurons new entries. Fields and roles of a tensor are those of `table`."""

import triton
import triton.language as tl

from ..common.fused_philox import normal, uniform
from ..common.typed_memory import load_as_float, round_as, store_float
from . import table as neuron_table
from .reference import SPLIT_WORD
from .templates import (
    ADDRESS,
    BIAS,
    BIAS_DTYPE,
    BIAS_STRIDE,
    DTYPE,
    ENTRIES,
    ENTRY_STEP,
    FIELDS,
    FIRST_ENTRY,
    LANE_STRIDE,
    LANES,
    NEURON_STRIDE,
    NEURONS,
    PROGRAMS,
    ROLE,
    SCAN,
    SITE,
    START,
    WORD,
    by_lane,
    by_neuron,
    count_flags,
    flags,
    templates_mean,
    weight_statistics,
)

ROWS, COLUMNS, MEAN = (tl.constexpr(role) for role in (neuron_table.ROWS, neuron_table.COLUMNS, neuron_table.MEAN))
_SPLIT_WORD = tl.constexpr(SPLIT_WORD)

# Tiles: neurons x lanes where lanes lie side by side in memory (up rows), lanes x neurons where neurons do (down columns).
ROW_NEURONS, ROW_LANES = tl.constexpr(8), tl.constexpr(128)
COLUMN_NEURONS, COLUMN_LANES = tl.constexpr(32), tl.constexpr(32)


@triton.jit
def _targets(
    item,
    survivors,
    partials,
    std,
    lane_offset,
    lane_valid,
    INIT: tl.constexpr,
    PARTIALS: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Mean and deviation of new rows, and [BLOCK_L] what other tensors are filled with."""
    role = tl.load(item + ROLE)
    centre, deviation = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32) + std
    fill = tl.zeros([BLOCK_L], tl.float32)
    if INIT == "fan_in":
        deviation = 1.0 / tl.sqrt_rn(tl.load(item + ENTRIES).to(tl.float32) * 3.0)
    if INIT == "layer":  # noqa: SIM102  (known when the kernel is compiled; the role is not)
        if role == ROWS:
            centre, deviation = weight_statistics(item, partials, PARTIALS)
    if role == MEAN:
        fill += templates_mean(item, survivors, lane_offset, lane_valid, AXIS, BLOCK_N, BLOCK_L)
    return centre, deviation, fill


@triton.jit
def _split_from_donor(
    item, offset, index, chosen, todo, neuron, lane_offset, donors, dtype, seed, event, AXIS: tl.constexpr
):
    """What the chosen neurons get from their donors; an outgoing column is shared, and the donor's own part written."""
    address = tl.load(item + ADDRESS)
    donor = tl.load(donors + neuron, mask=chosen, other=0) * tl.load(item + NEURON_STRIDE)
    donor_offset = by_neuron(donor, AXIS) + by_lane(lane_offset, AXIS)
    value = load_as_float(address, donor_offset, todo, dtype)
    if tl.load(item + ROLE) == COLUMNS:
        whole = value
        share = uniform(seed, index, event, tl.load(item + SITE), _SPLIT_WORD) * 0.2 + 0.4
        value = round_as(whole * share, dtype)
        store_float(address, donor_offset, whole - value, todo, dtype)
    return value


@triton.jit
def _renew(
    item,
    neuron,
    chosen,
    lane,
    mean_outputs,
    donors,
    centre,
    deviation,
    fill,
    seed,
    event,
    INIT: tl.constexpr,
    AXIS: tl.constexpr,
):
    """Writes the chosen neurons of one tile, and returns what to fold for each lane: their columns times their mean outputs."""
    address, dtype, role = tl.load(item + ADDRESS), tl.load(item + DTYPE), tl.load(item + ROLE)
    lane_offset = lane.to(tl.int64) * tl.load(item + LANE_STRIDE)
    todo = by_neuron(chosen, AXIS) & by_lane(lane < tl.load(item + LANES), AXIS)
    offset = by_neuron(neuron.to(tl.int64) * tl.load(item + NEURON_STRIDE), AXIS) + by_lane(lane_offset, AXIS)
    # Logical place of an element among those of its tensor, neuron by neuron: the counter of its random number.
    entry = tl.load(item + FIRST_ENTRY) + lane.to(tl.int64) * tl.load(item + ENTRY_STEP)
    index = by_neuron(neuron.to(tl.int64) * tl.load(item + ENTRIES), AXIS) + by_lane(entry, AXIS)
    folded = fill * 0.0
    if tl.load(item + BIAS) != 0:
        weight = tl.load(mean_outputs + neuron, mask=chosen, other=0.0)
        folded += tl.sum(load_as_float(address, offset, todo, dtype) * by_neuron(weight, AXIS), AXIS)
    value = tl.broadcast_to(by_lane(fill, AXIS), index.shape)
    if INIT == "split":
        if role <= COLUMNS:
            value = _split_from_donor(
                item, offset, index, chosen, todo, neuron, lane_offset, donors, dtype, seed, event, AXIS
            )
    elif INIT != "zero":  # noqa: SIM102
        if role == ROWS:
            site, word = tl.load(item + SITE), tl.load(item + WORD).to(tl.uint32)
            value = normal(seed, index, event, site, word) * deviation + centre
    store_float(address, offset, value, todo, dtype)
    return folded


@triton.jit
def _reinit(
    item,
    block,
    masks,
    survivors,
    mean_outputs,
    donors,
    partials,
    std,
    seed,
    event,
    INIT: tl.constexpr,
    PARTIALS: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Does one block of lanes, and its share of the neurons, of one item. AXIS: which axis of a tile counts the neurons."""
    neurons, lanes = tl.load(item + NEURONS).to(tl.int32), tl.load(item + LANES).to(tl.int32)
    programs, site_start = tl.load(item + PROGRAMS).to(tl.int32), tl.load(item + START)
    lane_blocks = tl.cdiv(lanes, BLOCK_L)
    length = tl.cdiv(neurons, programs * BLOCK_N) * BLOCK_N
    start = (block // lane_blocks) * length
    stop = tl.minimum(start + length, neurons)
    mask = masks + site_start
    if count_flags(mask, start, stop) > 0:
        lane = (block % lane_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
        lane_valid = lane < lanes
        lane_offset = lane.to(tl.int64) * tl.load(item + LANE_STRIDE)
        centre, deviation, fill = _targets(
            item, survivors + site_start, partials, std, lane_offset, lane_valid, INIT, PARTIALS, AXIS, BLOCK_N, BLOCK_L
        )
        if INIT == "split":
            donors += site_start
        folded = tl.zeros([BLOCK_L], tl.float32)
        for scanned in range(start, stop, SCAN):
            place = scanned + tl.arange(0, SCAN)
            waiting = flags(mask, place, stop)
            found = tl.min(tl.where(waiting, place, stop), 0)
            while found < stop:  # from tile to tile with a chosen neuron
                first = found // BLOCK_N * BLOCK_N
                neuron = first + tl.arange(0, BLOCK_N)
                folded += _renew(
                    item,
                    neuron,
                    flags(mask, neuron, stop),
                    lane,
                    mean_outputs + site_start,
                    donors,
                    centre,
                    deviation,
                    fill,
                    seed,
                    event,
                    INIT,
                    AXIS,
                )
                found = tl.min(tl.where(waiting & (place >= first + BLOCK_N), place, stop), 0)
        bias = tl.load(item + BIAS)
        if bias != 0:
            place, bias_dtype = lane.to(tl.int64) * tl.load(item + BIAS_STRIDE), tl.load(item + BIAS_DTYPE)
            folded += load_as_float(bias, place, lane_valid, bias_dtype)
            store_float(bias, place, folded, lane_valid, bias_dtype)


@triton.jit(do_not_specialize=["first_item", "seed", "event"])
def reinit_kernel(
    items,  # [all, FIELDS] int64
    first_item,
    masks,  # [neurons of all sites] int8, like survivors
    survivors,
    mean_outputs,  # [neurons of all sites] float32
    donors,  # [neurons of all sites] int64, or None unless INIT is "split"
    partials,  # [partials of all weights, PARTIAL] float32, or None unless INIT is "layer"
    std,
    seed,
    event,
    INIT: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    item, block, seed = items + (first_item + tl.program_id(0)) * FIELDS, tl.program_id(1), seed.to(tl.int64)
    if tl.load(item + LANE_STRIDE) < tl.load(item + NEURON_STRIDE):
        _reinit(
            item,
            block,
            masks,
            survivors,
            mean_outputs,
            donors,
            partials,
            std,
            seed,
            event,
            INIT,
            PARTIALS,
            0,
            ROW_NEURONS,
            ROW_LANES,
        )
    else:
        _reinit(
            item,
            block,
            masks,
            survivors,
            mean_outputs,
            donors,
            partials,
            std,
            seed,
            event,
            INIT,
            PARTIALS,
            1,
            COLUMN_NEURONS,
            COLUMN_LANES,
        )
