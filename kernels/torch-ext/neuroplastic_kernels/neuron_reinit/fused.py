"""Rebirth of the chosen neurons of all sites, in every tensor that knows them, in one launch.

A table on the device lists the tensors; `table` says how, and when there is more than one launch. Every tensor is seen
as lanes (inputs or outputs) of neurons. A program takes a block of lanes, looks for chosen neurons in its share of the mask,
and ends at once if there are none. What needs sums over neurons (the mean output folded into down_bias, the models' mean) is
done by programs that own all neurons of their lanes, so sums have a fixed order and nothing is read back to the host.

init="layer" needs the models' mean and deviation first: one small launch more, which also ends at once for a site without
a chosen neuron. All work grows with the chosen neurons and their models.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..common.strided_planes import on_device
from ..common.tensor_places import tensor_places
from .kernels import COLUMN_LANES, ROW_LANES, reinit_kernel
from .neurons import Init, NeuronTensors
from .reference import check_split
from .table import Item, Launch, table
from .templates import PARTIAL, statistics_kernel

NUM_WARPS = 4


class Prepared(NamedTuple):
    """What stays valid while the tensors stay where they are."""

    layout: tuple[Any, ...]
    items: Tensor  # [items, fields] int64
    launches: list[tuple[Launch, int]]  # with the blocks of their largest item
    partials: Tensor | None  # [partials, PARTIAL] float32, init="layer" only
    most_partials: tuple[int, int]  # of a plane; of a weight, a power of two


def neuron_reinit(
    sites: Sequence[NeuronTensors],
    *,
    init: Init = "normal",
    std: float = 0.01,
    outgoing: str = "zero",
    seed: int = 0,
    event: int = 0,
    workspace: dict[Any, Any] | None = None,
) -> None:
    """Gives the masked neurons of every site new weights and initial optimizer state, in place.

    Arguments and result are those of `neuron_reinit.reference`, for float32, bfloat16 and float16 tensors of any strides.
    `workspace`: a dict to keep between calls; it holds the table, which is written anew only if a tensor has moved. Nothing
    waits for the device.

    Raises:
        ValueError: init="split" without donors or without down_weight.
    """
    if init == "split":
        check_split(sites)
    workspace = {} if workspace is None else workspace
    for device in dict.fromkeys(tensors.mask.device for tensors in sites):
        here = [tensors for tensors in sites if tensors.mask.device == device]
        prepared = _prepared(here, device, init, outgoing == "zero", workspace)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            _launch(here, prepared, init, std, seed, event)
    torch.autograd.graph.increment_version([tensor for tensors in sites for tensor in tensors.written()])


def _prepared(
    sites: Sequence[NeuronTensors], device: torch.device, init: Init, silence: bool, workspace: dict[Any, Any]
) -> Prepared:
    """What `workspace` holds for these sites, or new."""
    key, layout = ("neuron_reinit", device, init, silence), _layout(sites)
    held = workspace.get(key)
    if held is not None and held.layout == layout:
        return held
    rows, launches = table(sites, init, silence)
    blocks = [max(map(_blocks, rows[launch.first : launch.first + launch.items])) for launch in launches]
    partials = torch.empty(sum(row.partials for row in rows), PARTIAL.value, device=device) if init == "layer" else None
    most = max((row.partials for row in rows), default=0), max((row.weight_partials for row in rows), default=0)
    workspace[key] = Prepared(
        layout,
        on_device(rows, device),
        list(zip(launches, blocks, strict=True)),
        partials,
        (most[0], triton.next_power_of_2(max(1, most[1]))),
    )
    return workspace[key]


def _layout(sites: Sequence[NeuronTensors]) -> tuple[Any, ...]:
    """All that the table says of the sites."""
    held: list[Tensor | None] = []
    for tensors in sites:
        held += [*(part for up in tensors.incoming for part in up), tensors.down_weight, tensors.down_bias]
        held += [state for state, _, _ in tensors.state]
    rest = (
        (t.site, t.mask.numel(), t.mean_output is None, len(t.incoming), [(dim, fill) for _, dim, fill in t.state])
        for t in sites
    )
    return tensor_places(held), *rest


def _blocks(item: Item) -> int:
    return item.programs * triton.cdiv(item.lanes, (ROW_LANES if item.lanes_lie_together else COLUMN_LANES).value)


def _launch(sites: Sequence[NeuronTensors], prepared: Prepared, init: Init, std: float, seed: int, event: int) -> None:
    """Everything of one device. What is new at each event goes beside the table, as arguments."""
    masks = torch.cat([tensors.mask for tensors in sites]).view(torch.int8)
    survivors = torch.cat([tensors.survivors for tensors in sites]).view(torch.int8)
    mean_outputs = torch.cat([_mean_output(tensors) for tensors in sites]).float()
    donors = torch.cat([tensors.donors for tensors in sites if tensors.donors is not None]) if init == "split" else None
    signed_seed = (seed + 2**63) % 2**64 - 2**63
    most_partials, PARTIALS = prepared.most_partials
    for (first, items, weights), blocks in prepared.launches:
        if init == "layer" and weights:
            statistics_kernel[(weights, most_partials)](
                prepared.items, first, masks, survivors, prepared.partials, num_warps=NUM_WARPS
            )
        reinit_kernel[(items, blocks)](
            prepared.items,
            first,
            masks,
            survivors,
            mean_outputs,
            donors,
            prepared.partials,
            std,
            signed_seed,
            event & 0xFFFFFFFF,
            INIT=init,
            PARTIALS=PARTIALS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a product must round before it is taken from its whole
        )


def _mean_output(tensors: NeuronTensors) -> Tensor:
    if tensors.mean_output is None:
        return torch.empty(tensors.mask.shape, device=tensors.mask.device)  # not read
    return tensors.mean_output
