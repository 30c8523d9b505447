"""Neurons that a run grew, kept in a folder of their own, put on their base, and taken out again.

A neuron is known by its content: `detach_neurons` looks for the adapter's neurons bit for bit. So the model holds no record of
adapters, and stays a plain model, merged from the first moment. The JSON holds digests of the base's tensors: an adapter is
put on no other base than its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons.operate.adapter_base import SHOWN, AdapterBase, adaptable_sites, tensors_of
from ..neurons.operate.adapters import (
    grown_neurons,
    outgoing_names,
    put_neurons,
    require_operable,
    require_room,
    slots_of,
    take_out_neurons,
)
from ..neurons.sites import require_whole_site
from .neuron_adapter_files import INDEX_FILE, Adapter, read_adapter, write_adapter

logger = logging.getLogger(__name__)


def save_neurons(model: nn.Module, folder: str | os.PathLike[str], base: AdapterBase | nn.Module) -> int:
    """Writes the neurons that `model` has beyond `base` into `folder`, and returns their number.

        base = only_new_neurons(model)
        ...  # DropInCallback(DropInConfig.adapter(64)) under Trainer
        save_neurons(model, "adapter", base)

    The files hold incoming weights, biases and outgoing weights of the new neurons, the modules that learnt whole (see
    `AdapterBase.of`) with the base's own values of them, and the base's name and digests. They can be written while a DropIn
    watches the model, and while it trains. An earlier adapter in `folder` is replaced. Neurons none of which has learnt yet
    are saved with a warning.

    Args:
        base: of `only_new_neurons` or `AdapterBase.of`, before the neurons grew; or a model that is the base.

    Raises:
        ValueError: no neuron grew; anything of the base is not what it was; or values are not finite.
        FileExistsError: `folder` is a file, or holds other files and no adapter.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / INDEX_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else than a neuron adapter; choose another folder")
    base = base if isinstance(base, AdapterBase) else AdapterBase.of(base)
    _require_sites(base, model, "the base that was given has")
    changed = base.differences(model)
    if changed:
        raise ValueError(
            f"{_named(changed)} of {type(model).__name__} is not what the base had, and an adapter of new neurons could not "
            f"bring it back. Train with only_new_neurons(model) and DropInConfig.adapter(n); what else has to learn, running "
            f"statistics too, is named there: classifier=True, modules=[...]"
        )
    counts, slices = grown_neurons(model, base)
    if not any(counts.values()):
        raise ValueError(
            f"no neuron of {type(model).__name__} is active beyond its base, so there is no adapter to save; grow some with "
            f"DropInConfig.adapter(n) or grow(model, n), after the base was taken"
        )
    held = tensors_of(model)
    modules = {name: held[name].detach().cpu().contiguous() for name in base.tensors}
    for name, value in (slices | modules).items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name!r} holds values that are not finite; training diverged, and nothing is saved")
    if not any(bool(slices[name].any()) for name in outgoing_names(model) if name in slices):
        logger.warning(
            "the outgoing weights of all new neurons are still 0: the adapter in %s changes no output; train longer after the "
            "growth, which comes at the end of each `interval`",
            folder,
        )
    write_adapter(folder, Adapter(base, {name: count for name, count in counts.items() if count}, slices, modules))
    return sum(counts.values())


def attach_neurons(model: nn.Module, folder: str | os.PathLike[str], *, modules: bool = True) -> int:
    """Widens `model` by the neurons saved in `folder`, in place, and returns their number.

    The model is then the merged one: a plain model of a greater width, whose configuration says so, and which `save_pretrained`
    saves as any. Several adapters of one base stack, in any order but for rounding, those with modules of their own after those
    without. Where one configured width holds for all layers, those with fewer new neurons get slots in reserve.

    Args:
        model: the base, or the base with other adapters.
        modules: exchange the modules that the adapter holds whole, such as the classifier; False keeps the model's own. Of
            several adapters with a classifier only one can have its own in place.

    Raises:
        ValueError: files that are damaged or no adapter; another base, by the names of what differs; an adapter that is
            attached already; another adapter's classifier in place. The model is unchanged then.
        RuntimeError: a DropIn watches the model.
    """
    adapter = read_adapter(folder)
    exchanged = adapter.modules if modules else {}
    require_operable(model)
    _require_shapes(adapter, model, exchanged, folder)
    _require_base(adapter, model, folder)
    sites = adaptable_sites(model)
    require_room(model, [sites[name] for name in adapter.counts])
    if all(slot is not None for slots in slots_of(model, adapter.counts, adapter.slices).values() for slot in slots):
        raise ValueError(f"the neurons of {folder} are in the model already; detach_neurons takes them out")
    _require_exchangeable(adapter, model, exchanged, folder)
    put_neurons(model, adapter.base.widths, adapter.counts, adapter.slices)
    _write(model, exchanged)
    return sum(adapter.counts.values())


def detach_neurons(model: nn.Module, folder: str | os.PathLike[str]) -> int:
    """Takes the neurons saved in `folder` out of `model`, in place, and returns their number.

    What stays is what was there before `attach_neurons`, bit for bit, widths and configuration too. Neurons are found by their
    content, also after the model was saved, loaded, moved or cast. Modules that the adapter holds whole get the base's values
    back, unless others are in place by now. Of adapters that were trained one on top of another, the last goes first.

    Raises:
        ValueError: files that are damaged or no adapter; neurons that are not there, or were trained further. The model is
            unchanged then.
        RuntimeError: a DropIn watches the model.
    """
    adapter = read_adapter(folder)
    require_operable(model)
    _require_shapes(adapter, model, {}, folder)
    slots = slots_of(model, adapter.counts, adapter.slices)
    missing = sum(slot is None for found in slots.values() for slot in found)
    total = sum(adapter.counts.values())
    if missing or slots.keys() != adapter.counts.keys():
        raise ValueError(
            f"{missing} of the {total} neurons of {folder} are not in {type(model).__name__} as they were saved: the adapter "
            f"is not attached, or the model was trained since; take the base and attach what belongs to it"
        )
    own = tensors_of(model)
    other = [name for name, value in adapter.modules.items() if not _equal(own.get(name), value)]
    if other:
        logger.warning("%s is not that of %s, and stays as it is", _named(other), folder)
    take_out_neurons(
        model, adapter.base.widths, {name: [s for s in found if s is not None] for name, found in slots.items()}
    )
    if not other:
        _write(model, {name: adapter.base.tensors[name] for name in adapter.modules})
    return total


def _require_sites(base: AdapterBase, model: nn.Module, whose: str) -> None:
    """Raises ValueError unless `model` has the base's sites, at least as wide, with the same activations."""
    sites = adaptable_sites(model)
    if sites.keys() != base.widths.keys():
        differing = sorted(sites.keys() ^ base.widths.keys())
        raise ValueError(
            f"{whose} {len(base.widths)} layers that can hold neurons, {type(model).__name__} has {len(sites)}; in one of them "
            f"only: {_named(differing)}. Give the model of class {base.kind} that was trained, not a wrapped one"
        )
    for name, site in sites.items():
        require_whole_site(site)
        if site.width < base.widths[name]:
            raise ValueError(
                f"{whose} {base.widths[name]} neurons in {name!r}, the model has {site.width}: another base"
            )
        kind = type(site.activation).__name__
        if kind != base.activations[name]:
            raise ValueError(
                f"{whose} the activation {base.activations[name]} in {name!r}, the model has {kind}: another base"
            )


def _require_shapes(adapter: Adapter, model: nn.Module, whole: Mapping[str, Tensor], folder: Any) -> None:
    """Raises ValueError unless the adapter's slices, and the tensors `whole`, are of the model's shapes."""
    _require_sites(adapter.base, model, f"the base of {folder} has")
    own, sites = tensors_of(model), adaptable_sites(model)
    shapes = {name: list(tensor.shape) for name, tensor in own.items() if name in whole}
    names = {id(tensor): name for name, tensor in own.items()}
    for site, count in adapter.counts.items():
        for part in sites[site].slices:
            shapes[names[id(part.tensor)]] = [
                count if dim == part.dim else size for dim, size in enumerate(part.tensor.shape)
            ]
    held = {name: list(value.shape) for name, value in (adapter.slices | dict(whole)).items()}
    for name in {**shapes, **held}:
        if shapes.get(name) != held.get(name):
            raise ValueError(
                f"{folder} holds {name!r} of shape {held.get(name)}, and the model needs {shapes.get(name)}: another base"
            )


def _require_base(adapter: Adapter, model: nn.Module, folder: Any) -> None:
    """Raises ValueError unless the model's weights are those of the adapter's base, perhaps with other adapters."""
    base, own = adapter.base, tensors_of(model)
    for name, value in adapter.slices.items():
        if own[name].dtype != value.dtype:
            raise ValueError(
                f"{folder} holds {name!r} in {value.dtype}, the model in {own[name].dtype}: load the base in {value.dtype}, "
                f"attach the neurons, and cast the model then"
            )
    differing = base.differences(model)
    if differing:
        named = getattr(getattr(model, "config", None), "_name_or_path", "") or "the model"
        hint = (
            ". Where another adapter brought modules of its own, such as a classifier, detach that, attach this, then that"
            if any(grown_neurons(model, base)[0].values())
            else ""
        )
        raise ValueError(
            f"{folder} is an adapter for {base.name or base.kind}, and {named} differs from that in {len(differing)} of "
            f"{len(base.digests)} tensors: {_named(differing)}. Give the base that was trained{hint}"
        )


def _require_exchangeable(adapter: Adapter, model: nn.Module, exchanged: Mapping[str, Tensor], folder: Any) -> None:
    """Raises ValueError where modules to be exchanged are another adapter's; says where they are a new head's."""
    own = tensors_of(model)
    other = [name for name in exchanged if not _equal(own[name], adapter.base.tensors[name])]
    if not other:
        return
    if any(grown_neurons(model, adapter.base)[0].values()):
        raise ValueError(
            f"{_named(other)} is not the base's: another adapter has its own in place, and {folder} brings one too. Pass "
            f"modules=False to attach the neurons alone, or detach the other adapter"
        )
    logger.warning(
        "%s is another than the base of %s had, as a new head is; detach_neurons will put that base's back",
        _named(other),
        folder,
    )


def _equal(own: Tensor | None, value: Tensor) -> bool:
    return own is not None and torch.equal(own.detach().cpu(), value.to(own.dtype))


@torch.no_grad()
def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    own = tensors_of(model)
    for name, value in values.items():
        own[name].detach().copy_(value)


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
