"""Neurons that are taken out of the model they grew in and put into another copy of its base: parallel adapters (arXiv
2110.04366, with the layer's own activation) without a branch in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..observe.hooks import is_watched
from ..sites import NeuronSlice, Site, inert_slots, require_ability, require_whole_site
from .adapter_base import AdapterBase, adaptable_sites, tensors_of
from .resize import _resize, _width_group, _with_same_width, refuse_adapters


@torch.no_grad()
def grown_neurons(model: nn.Module, base: AdapterBase) -> tuple[dict[str, int], dict[str, Tensor]]:
    """How many neurons each site has beyond the base's, and their slices, by name of the tensors."""
    names = {id(tensor): name for name, tensor in tensors_of(model).items()}
    counts, slices = dict[str, int](), dict[str, Tensor]()
    for name, site in adaptable_sites(model).items():
        require_whole_site(site)
        grown = ~inert_slots(site).cpu()
        grown[base.neurons(name)] = False
        chosen = grown.nonzero().flatten()
        counts[name] = len(chosen)
        for part in site.slices if len(chosen) else ():
            taken = part.tensor.detach().index_select(part.dim, chosen.to(part.tensor.device))
            slices[names[id(part.tensor)]] = taken.cpu().contiguous()
    return counts, slices


def require_operable(model: nn.Module) -> None:
    """Raises RuntimeError or ValueError for a model whose widths cannot change now."""
    if is_watched(model):
        raise RuntimeError("a DropIn watches this model; call its unpatch() before neurons are attached or detached")
    refuse_adapters(model)


def require_room(model: nn.Module, sites: Sequence[Site]) -> None:
    """Raises ValueError or TypeError unless `sites`, and those that share their configured width, can be widened."""
    for site in _with_same_width(model, list(sites)):
        require_ability(site, "change its width", "can hold no neurons of an adapter")
        require_whole_site(site)


@torch.no_grad()
def put_neurons(
    model: nn.Module, widths: Mapping[str, int], counts: Mapping[str, int], slices: Mapping[str, Tensor]
) -> None:
    """Puts `grown_neurons` into slots in reserve beyond the base's `widths`, and widens the model by those that are missing.

    The check that everything fits comes before, see `require_room`.
    """
    sites = adaptable_sites(model)
    names = {id(tensor): name for name, tensor in tensors_of(model).items()}
    free = {name: _free(site, widths[name]) for name, site in sites.items()}
    short = {name: max(0, count - len(free[name])) for name, count in counts.items()}
    changes = dict[str, tuple[Site, Tensor, int]]()
    for name in counts:
        group = _with_same_width(model, [sites[name]])
        added = max(short.get(each.name, 0) for each in group)
        changes |= {each.name: (each, torch.arange(each.width), added) for each in group}
    _resize(model, list(changes.values()), None)
    for name, count in counts.items():
        slots = _free(sites[name], widths[name])[:count]
        for part in sites[name].slices if count else ():
            value = slices[names[id(part.tensor)]].to(part.tensor)
            part.tensor.detach().index_copy_(part.dim, slots.to(part.tensor.device), value)


def slots_of(model: nn.Module, counts: Mapping[str, int], slices: Mapping[str, Tensor]) -> dict[str, list[int | None]]:
    """By site, the slots that hold these neurons bit for bit, None for one that is not there. Running statistics may differ."""
    names = {id(tensor): name for name, tensor in tensors_of(model).items()}
    found = dict[str, list[int | None]]()
    for name, site in adaptable_sites(model).items():
        if not counts.get(name):
            continue
        parts = [part for part in site.slices if isinstance(part.tensor, nn.Parameter)]
        places = dict[bytes, list[int]]()
        for slot, content in enumerate(_rows(parts, lambda part: part.tensor.detach())):
            places.setdefault(content, []).append(slot)
        wanted = _rows(parts, lambda part: slices[names[id(part.tensor)]].to(part.tensor))
        # Of neurons that are alike each has a slot of its own.
        found[name] = [places[content].pop(0) if places.get(content) else None for content in wanted]
    return found


@torch.no_grad()
def take_out_neurons(model: nn.Module, widths: Mapping[str, int], slots: Mapping[str, Sequence[int]]) -> None:
    """Puts `slots` into reserve, and takes slots in reserve beyond the base's `widths` out of the model.

    Where one configured width holds for several sites, as many go as every one of these can spare.
    """
    sites = adaptable_sites(model)
    for name, chosen in slots.items():
        for part in sites[name].slices:
            part.tensor.detach().index_fill_(part.dim, torch.tensor(chosen, device=part.tensor.device), 0.0)
    changes, done = [], set[Any]()
    for name in slots:
        key = _width_group(sites[name]) or name
        if key in done:
            continue
        done.add(key)
        group = _with_same_width(model, [sites[name]])
        free = [_free(site, widths.get(site.name, site.width)) for site in group]
        spare = min(map(len, free))
        for site, inert in zip(group, free, strict=True):
            kept = torch.ones(site.width, dtype=torch.bool)
            kept[inert[len(inert) - spare :]] = False
            changes.append((site, kept.nonzero().flatten(), 0))
    _resize(model, changes, None)


def _free(site: Site, width: int) -> Tensor:
    """[K] int64: slots in reserve beyond the first `width`, on the host."""
    inert = inert_slots(site).cpu().nonzero().flatten()
    return inert[inert >= width]


def _rows(parts: Sequence[NeuronSlice], tensor_of: Callable[[NeuronSlice], Tensor]) -> list[bytes]:
    """All slices of each neuron as bytes."""
    columns = []
    for part in parts:
        rows = tensor_of(part).movedim(part.dim, 0).cpu()
        columns.append(rows.reshape(len(rows), -1).contiguous().view(torch.uint8))
    return [row.tobytes() for row in torch.cat(columns, 1).numpy()]
