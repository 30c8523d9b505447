"""Real widths: slots in reserve are added to a model, and taken out again, between runs.

A slot in reserve has zero incoming weights, zero bias and zero outgoing weights: the slot adds nothing to the output and
receives no gradient, so a model with reserve computes what it did without, and remains a plain model.

Models whose configuration holds one width for all layers keep one width for all layers: what is added or removed is added
or removed everywhere, so that every checkpoint loads with stock `from_pretrained`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DropInConfig
from ..decide.decisions import slots_needed
from ..observe.hooks import is_watched
from ..sites import Site, find_sites, inert_slots, require_ability, require_whole_site, select_sites
from .optimizer_state import Cut, resize, resize_state
from .optimizers import Optimizers


def reserve(
    model: nn.Module,
    count: int | float,
    *,
    layers: int | str | Sequence[int | str] | None = None,
    optimizer: Any = None,
) -> None:
    """Adds slots in reserve to the feed-forward layers of `model`, in place.

    The Parameters stay the same objects with new shapes, and the model's configuration learns its new width. Do this before
    the model is wrapped for distributed training and while no output with its graph is held; with an optimizer that has
    state, pass it.

    Args:
        count: slots per layer; a float is a share of the layer's width, rounded up.
        layers: as in DropInConfig. In a model with one configured width, any selection widens every layer of that width.
        optimizer: its state is widened with initial values.

    Raises:
        ValueError: a negative count, a site whose activation does not map 0 to 0, or one whose width no configuration could
            describe: there neurons can be replaced, but not added or removed.
        RuntimeError: a DropIn watches the model.
        TypeError: optimizer state that cannot be resized.
    """
    if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count < math.inf:
        raise ValueError(f"count must be a number of slots, or a share of the width, of at least 0, got {count!r}")
    sites = _with_same_width(model, select_sites(model, layers))
    for site in sites:
        require_ability(site, "change its width", "can hold no reserve")
    added = {id(site): count if isinstance(count, int) else math.ceil(count * site.width) for site in sites}
    _resize(model, [(site, torch.arange(site.width), added[id(site)]) for site in sites], optimizer)


def make_room(model: nn.Module, sites: Sequence[Site], config: DropInConfig) -> list[int]:
    """Adds the slots in reserve that `config` will ask for and `sites` do not hold yet; returns the active neurons of each."""
    inert = [int(inert_slots(site).sum()) for site in sites]
    active = [site.width - spare for site, spare in zip(sites, inert, strict=True)]
    short = [slots_needed(config, start) - spare for start, spare in zip(active, inert, strict=True)]
    if max(short) > 0:
        reserve(model, max(short), layers=[site.name for site in sites])
    return active


def refuse_adapters(model: nn.Module) -> None:
    """Raises ValueError for a model with adapters (PEFT), whose widths no saved adapter could tell."""
    if any(hasattr(part, "peft_config") or type(part).__name__ == "ModulesToSaveWrapper" for part in model.modules()):
        raise ValueError(
            "widths of a model with adapters (PEFT) cannot change, since the saved adapter would fit no stock model: merge the "
            "adapters first (merge_and_unload), or leave extra_neurons at None"
        )


def compact(model: nn.Module, *, optimizer: Any = None) -> int:
    """Takes slots in reserve out of `model`, in place; returns how many slots went in all.

    In a model with one configured width, every layer loses as many as the layer with the fewest can spare, so that the width
    stays one number; what is left stays in reserve and harmless.

    Raises: as `reserve`.
    """
    groups: dict[Any, list[Site]] = {}
    for site in find_sites(model):
        groups.setdefault(_width_group(site) or site.name, []).append(site)
    changes = []
    for sites in groups.values():
        spare = min(_spare_slots(site) for site in sites)
        for site in sites:
            surplus = inert_slots(site).nonzero().squeeze(1)[-spare:] if spare else torch.empty(0, dtype=torch.long)
            kept = torch.ones(site.width, dtype=torch.bool)
            kept[surplus.cpu()] = False
            changes.append((site, kept.nonzero().squeeze(1), 0))
    before = sum(site.width for site, *_ in changes)
    _resize(model, changes, optimizer)
    return before - sum(site.width for site, *_ in changes)


def _spare_slots(site: Site) -> int:
    """How many slots could be taken out of `site`."""
    return 0 if site.refusal("change its width") else int(inert_slots(site).sum())


def _with_same_width(model: nn.Module, sites: list[Site]) -> list[Site]:
    """`sites`, and every other site whose width stands in the same place of the configuration."""
    names, groups = {site.name for site in sites}, {_width_group(site) for site in sites} - {None}
    return [site for site in find_sites(model) if site.name in names or _width_group(site) in groups]


def _width_group(site: Site) -> tuple[int, str] | None:
    """What sites of one configured width have in common."""
    return (id(site.configs[-1]), site.width_key) if site.configs and site.width_key else None


@torch.no_grad()
def _resize(model: nn.Module, changes: Sequence[tuple[Site, Tensor, int]], optimizer: Any) -> None:
    """Keeps the slots `kept` of each site and appends `added` slots in reserve."""
    if is_watched(model):
        raise RuntimeError("a DropIn watches this model; call its unpatch() before the widths change")
    optimizers = Optimizers(optimizer)
    changes = [(site, kept, added) for site, kept, added in changes if added or len(kept) != site.width]
    if changes:
        refuse_adapters(model)
    tensors: dict[int, Tensor] = {}
    cuts: dict[int, list[Cut]] = {}
    for site, kept, added in changes:
        require_whole_site(site)
        for neuron_slice in site.slices:  # two sites may hold neurons of one tensor, along different dimensions
            tensors[id(neuron_slice.tensor)] = neuron_slice.tensor
            cuts.setdefault(id(neuron_slice.tensor), []).append(Cut(neuron_slice.dim, kept, added))
    # Whatever cannot be resized is refused before the first tensor changes.
    states = {key: resize_state(optimizers, tensor, cuts[key]) for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        for cut in cuts[key]:
            tensor.data = resize(tensor.data, cut)
        tensor.grad = None
        for state, resized in states[key]:
            state.update(resized)
    for site, kept, added in changes:
        site.declare_width(len(kept) + added)
        for config in site.configs:
            setattr(config, str(site.width_key), site.width)
