"""Neurons that a run grew, in a folder of their own: neuron_adapter.safetensors and neuron_adapter.json.

A neuron is known by its content: `detach_neurons` looks for the adapter's neurons bit for bit. So the model holds no record of
adapters, and stays a plain model, merged from the first moment. The JSON holds digests of the base's tensors: an adapter is
put on no other base than its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ..neurons.operate.adapter_base import SHOWN, AdapterBase, adaptable_sites, tensors_of
from ..neurons.operate.adapters import (
    grown_neurons,
    put_neurons,
    require_operable,
    require_room,
    slots_of,
    take_out_neurons,
)
from .checkpoint import write_whole

TENSOR_FILE, INDEX_FILE = "neuron_adapter.safetensors", "neuron_adapter.json"
FORMAT = 1
BASE = "base/"  # before the names of the base's own values of modules that the adapter exchanges
logger = logging.getLogger(__name__)


class Adapter(NamedTuple):
    """The content of a folder: `counts` of neurons by site, their `slices` by name of the tensor, and `modules` as a whole."""

    base: AdapterBase
    counts: dict[str, int]
    slices: dict[str, Tensor]
    modules: dict[str, Tensor]


def save_neurons(model: nn.Module, folder: str | os.PathLike[str], base: AdapterBase | nn.Module) -> int:
    """Writes the neurons that `model` has beyond `base` into `folder`, and returns their number.

        base = only_new_neurons(model)
        ...  # DropInCallback(DropInConfig.adapter(64)) under Trainer
        save_neurons(model, "adapter", base)

    The files hold incoming weights, biases and outgoing weights of the new neurons, the modules that learnt whole (see
    `AdapterBase.of`) with the base's own values of them, and the base's name and digests. They can be written while a DropIn
    watches the model, and while it trains. An earlier adapter in `folder` is replaced.

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
    data = save(slices | modules | {f"{BASE}{name}": value.contiguous() for name, value in base.tensors.items()})
    index = {
        "format": FORMAT,
        "neurons": {name: count for name, count in counts.items() if count},
        "base": {
            field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name != "tensors"
        },
        "modules": sorted(modules),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TENSOR_FILE, data)
    write_whole(folder / INDEX_FILE, json.dumps(index, indent=1, allow_nan=False).encode())
    return sum(counts.values())


def attach_neurons(model: nn.Module, folder: str | os.PathLike[str], *, modules: bool = True) -> int:
    """Widens `model` by the neurons saved in `folder`, in place, and returns their number.

    The model is then the merged one: a plain model of a greater width, whose configuration says so, and which `save_pretrained`
    saves as any. Several adapters of one base stack, in any order but for rounding. Where one configured width holds for all
    layers, those with fewer new neurons get slots in reserve.

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
    require_operable(model)
    _require_base(adapter, model, folder)
    sites = adaptable_sites(model)
    require_room(model, [sites[name] for name in adapter.counts])
    if all(slot is not None for slots in slots_of(model, adapter.counts, adapter.slices).values() for slot in slots):
        raise ValueError(f"the neurons of {folder} are in the model already; detach_neurons takes them out")
    exchanged = adapter.modules if modules else {}
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
    _require_sites(adapter.base, model, f"the base of {folder} has")
    slots = slots_of(model, adapter.counts, adapter.slices)
    missing = sum(slot is None for found in slots.values() for slot in found)
    total = sum(adapter.counts.values())
    if missing or slots.keys() != adapter.counts.keys():
        raise ValueError(
            f"{missing} of the {total} neurons of {folder} are not in {type(model).__name__} as they were saved: the adapter "
            f"is not attached, or the model was trained since; take the base and attach what belongs to it"
        )
    own, other = tensors_of(model), list[str]()
    for name, value in adapter.modules.items():
        if not torch.equal(own[name].detach().cpu(), value.to(own[name].dtype)):
            other.append(name)
    if other:
        logger.warning("%s is not that of %s, and stays as it is", _named(other), folder)
    take_out_neurons(
        model, adapter.base.widths, {name: [s for s in found if s is not None] for name, found in slots.items()}
    )
    if not other:
        _write(model, {name: adapter.base.tensors[name] for name in adapter.modules})
    return total


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """The adapter in `folder`.

    Raises:
        ValueError: files that are absent, damaged, of two saves, or of another format.
    """
    path = Path(folder) / INDEX_FILE
    try:
        index = json.loads(path.read_bytes())
        data = (Path(folder) / TENSOR_FILE).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder} is no neuron adapter: {error.filename} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    form = index.get("format") if isinstance(index, dict) else None
    if form != FORMAT:
        raise ValueError(f"{path} has format {form!r}, this version reads {FORMAT}")
    if hashlib.sha256(data).hexdigest() != index.get("sha256"):
        raise ValueError(
            f"{Path(folder) / TENSOR_FILE} is damaged, or of another save than {INDEX_FILE}; save the adapter again"
        )
    try:
        tensors = load(data)
        modules = {name: tensors.pop(name) for name in index["modules"]}
        base = AdapterBase(**index["base"], tensors={name: tensors.pop(f"{BASE}{name}") for name in modules})
        counts = {str(name): int(count) for name, count in index["neurons"].items()}
        if not counts or min(counts.values()) < 1 or not counts.keys() <= base.widths.keys():
            raise ValueError(f"neurons are {index['neurons']}")
    except Exception as error:  # safetensors has an error class of its own
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return Adapter(base, counts, tensors, modules)


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
        if site.width < base.widths[name]:
            raise ValueError(
                f"{whose} {base.widths[name]} neurons in {name!r}, the model has {site.width}: another base"
            )
        kind = type(site.activation).__name__
        if kind != base.activations[name]:
            raise ValueError(
                f"{whose} the activation {base.activations[name]} in {name!r}, the model has {kind}: another base"
            )


def _require_base(adapter: Adapter, model: nn.Module, folder: Any) -> None:
    """Raises ValueError unless `model` is the adapter's base, perhaps with other adapters."""
    base = adapter.base
    _require_sites(base, model, f"the base of {folder} has")
    own = tensors_of(model)
    expected = {id(part.tensor): (part.dim, count) for part, count in _parts(model, adapter.counts)}
    for name, value in (adapter.slices | adapter.modules).items():
        if name not in own:
            raise ValueError(f"{folder} holds {name!r}, which the model lacks: another base")
        shape, cut = list(own[name].shape), expected.get(id(own[name]))
        if cut is not None:
            shape[cut[0]] = cut[1]
        if own[name].dtype != value.dtype:
            raise ValueError(
                f"{folder} holds {name!r} in {value.dtype}, the model in {own[name].dtype}: load the base in {value.dtype}, "
                f"attach the neurons, and cast the model then"
            )
        if shape != list(value.shape):
            raise ValueError(
                f"{folder} holds {name!r} of shape {tuple(value.shape)}, the model's is {tuple(shape)}: another base"
            )
    if lacking := [name for name, tensor in own.items() if id(tensor) in expected and name not in adapter.slices]:
        raise ValueError(f"{folder} lacks {_named(lacking)}, which belongs to the model's neurons: another base")
    differing = base.differences(model)
    if differing:
        named = getattr(getattr(model, "config", None), "_name_or_path", "") or "the model"
        raise ValueError(
            f"{folder} is an adapter for {base.name or base.kind}, and {named} differs from that in {len(differing)} of "
            f"{len(base.digests)} tensors: {_named(differing)}. Give the base that was trained"
        )


def _require_exchangeable(adapter: Adapter, model: nn.Module, exchanged: Mapping[str, Tensor], folder: Any) -> None:
    """Raises ValueError where modules to be exchanged are another adapter's; says where they are a new head's."""
    own = tensors_of(model)
    other = [name for name in exchanged if not torch.equal(own[name].detach().cpu(), adapter.base.tensors[name])]
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


def _parts(model: nn.Module, counts: Mapping[str, int]) -> list[tuple[Any, int]]:
    return [
        (part, counts[name]) for name, site in adaptable_sites(model).items() if name in counts for part in site.slices
    ]


@torch.no_grad()
def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    own = tensors_of(model)
    for name, value in values.items():
        own[name].detach().copy_(value)


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
