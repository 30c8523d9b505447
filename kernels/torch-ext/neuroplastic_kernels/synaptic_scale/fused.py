"""Homeostatic scaling of the incoming weights of all sites' neurons in one launch.

A table on the device lists the planes of the weights and which of them are a site's. A program owns whole rows, so it alone
reads and writes their factors; rows whose factor stays as it is are not touched. Every program of a site takes its mean
activity itself, in the same order: that reads little, and spares a launch.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided_planes import on_device, planes
from ..common.tensor_places import tensor_places
from ..common.typed_memory import DTYPE_CODES, load_as_float, round_as, store_float

NUM_WARPS = 4
BLOCK_ROWS, BLOCK_LANES = tl.constexpr(8), tl.constexpr(128)
SCAN = tl.constexpr(1024)  # neurons averaged together
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


class Row(NamedTuple):
    """One plane of a weight. Strides are in elements."""

    address: int
    dtype: int
    first: int  # of the site's neurons among those of all sites
    neurons: int
    lanes: int
    neuron_stride: int
    lane_stride: int
    following: int  # planes of the same weight that follow this one


ADDRESS, DTYPE, FIRST, NEURONS, LANES, NEURON_STRIDE, LANE_STRIDE, FOLLOWING = (
    tl.constexpr(position) for position in range(len(Row._fields))
)
FIELDS = tl.constexpr(len(Row._fields))


class Prepared(NamedTuple):
    """What stays valid while the weights stay where they are."""

    layout: tuple[Any, ...]
    table: Tensor  # [planes, fields] int64
    heads: Tensor  # [sites] int64: each site's first row of the table
    blocks: int  # of the widest site


@triton.jit
def _activity(average, weight, active, neuron, inside):
    """The activity of these neurons, and which of them are counted."""
    known = tl.load(weight + neuron, mask=inside, other=0.0)
    counted = inside & (known > 0.0) & (tl.load(active + neuron, mask=inside, other=0) != 0)
    return tl.div_rn(tl.load(average + neuron, mask=inside, other=0.0), tl.maximum(known, TINY)), counted


@triton.jit
def _mean_activity(average, weight, active, neurons):
    """Mean over the counted neurons of one site."""
    total, count = tl.zeros([SCAN], tl.float32), tl.zeros([SCAN], tl.float32)
    for first in range(0, neurons, SCAN):
        neuron = first + tl.arange(0, SCAN)
        activity, counted = _activity(average, weight, active, neuron, neuron < neurons)
        total += tl.where(counted, activity, 0.0)
        count += counted.to(tl.float32)
    return tl.sum(total, 0) / tl.maximum(tl.sum(count, 0), 1.0)


@triton.jit
def _multiply_rows(row, neuron, factor, changed):
    """Multiplies these rows of one plane by their factors."""
    address, dtype, lanes = tl.load(row + ADDRESS), tl.load(row + DTYPE), tl.load(row + LANES).to(tl.int32)
    row_offset = (neuron.to(tl.int64) * tl.load(row + NEURON_STRIDE))[:, None]
    for first in range(0, lanes, BLOCK_LANES):
        lane = first + tl.arange(0, BLOCK_LANES)
        inside = changed[:, None] & (lane < lanes)[None, :]
        offset = row_offset + (lane.to(tl.int64) * tl.load(row + LANE_STRIDE))[None, :]
        store_float(address, offset, load_as_float(address, offset, inside, dtype) * factor[:, None], inside, dtype)


@triton.jit
def scale_kernel(
    table,  # [planes, FIELDS] int64
    heads,  # [sites] int64
    scale,  # [neurons of all sites] float32, like average and weight
    average,
    weight,
    active,  # [neurons of all sites] int8
    rate,
    target,  # an activity; no matter if RELATIVE
    smallest,
    largest,
    RELATIVE: tl.constexpr,  # the target is the site's mean activity
):
    row = table + tl.load(heads + tl.program_id(0)) * FIELDS
    neurons, first = tl.load(row + NEURONS).to(tl.int32), tl.load(row + FIRST)
    neuron = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = neuron < neurons
    if tl.program_id(1) * BLOCK_ROWS < neurons:
        activity, counted = _activity(average + first, weight + first, active + first, neuron, valid)
        if RELATIVE:
            mean = _mean_activity(average + first, weight + first, active + first, neurons)
            error = tl.div_rn(mean - activity, activity * 0.0 + mean)
        else:
            error = target - activity
        error = tl.where(counted & (tl.abs(error) < float("inf")), error, 0.0)  # the comparison is false for NaN
        old = tl.load(scale + first + neuron, mask=valid, other=1.0)
        new = tl.minimum(tl.maximum(old * (error * rate + 1.0), smallest), largest)
        factor = round_as(tl.where(valid, tl.div_rn(new, old), 1.0), tl.load(row + DTYPE))
        changed = valid & (factor != 1.0)
        if tl.max(changed.to(tl.int32), 0) > 0:
            for plane in range(0, tl.load(row + FOLLOWING).to(tl.int32) + 1):
                _multiply_rows(row + plane * FIELDS, neuron, factor, changed)
            tl.debug_barrier()  # every warp has loaded `old` for itself by now
            tl.store(scale + first + neuron, old * factor, mask=changed)


@torch.no_grad()
def synaptic_scale(
    incoming: Sequence[Tensor],
    firsts: Sequence[int],
    scale: Tensor,
    average: Tensor,
    weight: Tensor,
    active: Tensor,
    *,
    rate: float,
    target: float | str,
    scale_range: tuple[float, float],
    workspace: dict[Any, Any] | None = None,
) -> None:
    """One step of synaptic scaling for every site, in place; see `synaptic_scale.reference`.

    incoming may be float32, bfloat16 or float16, with any strides; the other tensors are contiguous, and all are on one
    device. `workspace`: a dict to keep between calls; it holds the table, which is written anew only if a weight has moved.
    Nothing waits for the device.
    """
    sites = [(rows, first) for rows, first in zip(incoming, firsts, strict=True) if rows.shape[0]]
    if not sites:
        return
    prepared = _prepared(sites, scale.device, {} if workspace is None else workspace)
    relative = isinstance(target, str)
    with torch.cuda.device(scale.device) if scale.is_cuda else nullcontext():
        scale_kernel[(len(sites), prepared.blocks)](
            prepared.table,
            prepared.heads,
            scale,
            average,
            weight,
            active.view(torch.int8),
            rate,
            0.0 if relative else float(target),
            *scale_range,
            RELATIVE=relative,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    torch.autograd.graph.increment_version([scale, *(rows for rows, _ in sites)])


def _prepared(sites: Sequence[tuple[Tensor, int]], device: torch.device, workspace: dict[Any, Any]) -> Prepared:
    """What `workspace` holds for these sites, or new."""
    layout = tensor_places([rows for rows, _ in sites]), [first for _, first in sites]
    held = workspace.get("synaptic_scale")
    if held is not None and held.layout == layout:
        return held
    table: list[Row] = []
    heads = []
    for rows, first in sites:
        heads.append(len(table))
        table += _rows(rows, first)
    blocks = max(triton.cdiv(rows.shape[0], BLOCK_ROWS.value) for rows, _ in sites)
    workspace["synaptic_scale"] = Prepared(layout, on_device(table, device), on_device(heads, device), blocks)
    return workspace["synaptic_scale"]


def _rows(weight: Tensor, first: int) -> list[Row]:
    """A weight's rows of the table."""
    parts = [*planes(weight, 0)]
    return [
        Row(
            weight.data_ptr() + plane.offset * weight.element_size(),
            DTYPE_CODES[weight.dtype],
            first,
            plane.neurons,
            plane.lanes,
            plane.neuron_stride,
            plane.lane_stride,
            len(parts) - 1 - place,
        )
        for place, plane in enumerate(parts)
    ]
