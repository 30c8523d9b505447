"""Rebirth of the chosen neurons of all sites, in every tensor that knows them, in one launch.

A table on the device lists the tensors: address, dtype, strides, role, and the masks of their site. Every tensor is seen as
lanes (inputs or outputs) of neurons. A program takes a block of lanes, looks for chosen neurons in its share of the mask, and
ends at once if there are none. What needs sums over neurons (the mean output folded into down_bias, the survivors' mean) is
done by programs that own all neurons of their lanes, so sums have a fixed order and nothing is read back to the host.

init="layer" needs the survivors' mean and deviation first: one small launch more, which also ends at once for a site without
a chosen neuron. A state filled with the survivors' mean has to be read in full; all other work grows with the chosen neurons.
"""

from collections.abc import Sequence

import torch
import triton

from ..neurons import Init, NeuronTensors
from ..reference.neuron_reinit import checked_donors
from .neuron_kernels import COLUMN_LANES, PART, ROW_LANES, STATISTICS_ROWS, reinit_kernel, statistics_kernel
from .neuron_table import Item, items, prepared

NUM_WARPS = 4


def neuron_reinit(
    sites: Sequence[NeuronTensors],
    *,
    init: Init = "normal",
    std: float = 0.01,
    outgoing: str = "zero",
    seed: int = 0,
    event: int = 0,
) -> None:
    """Gives the masked neurons of every site new weights and initial optimizer state, in place.

    Arguments and result are those of `reference.neuron_reinit`, for float32, bfloat16 and float16 tensors of one or two
    dimensions and any strides. The table is written by the host at each call and copied without waiting for it.

    Raises:
        ValueError: init="split" without donors.
    """
    if init == "split":
        for tensors in sites:
            checked_donors(tensors)
    for device in dict.fromkeys(tensors.up_weight.device for tensors in sites):
        here = [prepared(tensors) for tensors in sites if tensors.up_weight.device == device]
        _launch(here, device, init, std, outgoing == "zero", seed, event)


def _launch(
    sites: Sequence[NeuronTensors], device: torch.device, init: Init, std: float, silence: bool, seed: int, event: int
) -> None:
    rows = [item for place, tensors in enumerate(sites) for item in items(tensors, place, init, silence)]
    if not rows:
        return
    table = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
    blocks = max(item.shares * triton.cdiv(item.lanes, _lane_block(item)) for item in rows)
    signed_seed = (seed + 2**63) % 2**64 - 2**63
    with torch.cuda.device_of(table):
        parts, PARTS = None, 1
        if init == "layer":
            used_parts = max(triton.cdiv(tensors.mask.numel(), STATISTICS_ROWS.value) for tensors in sites)
            PARTS = triton.next_power_of_2(used_parts)
            parts = torch.empty(len(sites), PARTS, PART.value, dtype=torch.float32, device=device)
            statistics_kernel[(len(rows), used_parts)](table, parts, PARTS=PARTS, num_warps=NUM_WARPS)
        reinit_kernel[(len(rows), blocks)](
            table, parts, std, signed_seed, event & 0xFFFFFFFF, INIT=init, SILENCE=silence, PARTS=PARTS,
            num_warps=NUM_WARPS, enable_fp_fusion=False,  # a product must round before it is taken from its whole
        )  # fmt: skip


def _lane_block(item: Item) -> int:
    return ROW_LANES.value if item.lanes_lie_together else COLUMN_LANES.value
