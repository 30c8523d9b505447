"""Neurons that can be kept apart from the model they grew in: parallel adapters (arXiv 2110.04366, with the layer's own
activation) without a branch in the graph.

What a model was before is its *base*. Neurons that grew beyond it, while everything old stayed as it was, are taken out of a
model and put into another copy of the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..observe.hooks import is_watched
from ..sites import Site, find_sites, inert_slots, require_ability, require_whole_site, select_sites
from .resize import _resize, _width_group, _with_same_width, refuse_adapters

SHOWN = 3  # names in an error


@dataclass(frozen=True)
class AdapterBase:
    """What a model was before neurons grew in it: digests of all tensors, and which neurons its layers had.

        base = only_new_neurons(model)  # or AdapterBase.of(model), which freezes nothing
        trainer = Trainer(model, ..., callbacks=[DropInCallback(DropInConfig.adapter(64))])
        trainer.train()
        save_neurons(model, "adapter", base)

    Attributes:
        name: the checkpoint's name or folder, by its configuration. kind: class of the model.
        widths: neurons by site, of the sites that can hold an adapter. reserve: those of them that were slots in reserve.
        activations: class of the activation by site.
        digests: of every parameter and saved buffer, by name, but for `tensors`.
        tensors: values of the modules that learn whole, by name: what an adapter exchanges, and gives back.
    """

    name: str
    kind: str
    widths: dict[str, int]
    activations: dict[str, str]
    reserve: dict[str, list[int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, *, classifier: bool = False, modules: Sequence[str] = ()) -> AdapterBase:
        """The base that `model` is now.

        Args:
            classifier: the head, which is what lies outside the model's `base_model_prefix`, will learn whole.
            modules: names of further modules, or parameters, that will.

        Raises:
            ValueError: a model no layer of which can hold an adapter; a module that is not there, holds neurons of a site, or
                shares a weight with the rest of the model.
        """
        sites = adaptable_sites(model)
        if not sites:
            raise ValueError(
                f"{type(model).__name__} has no feed-forward layer that could hold neurons of an adapter: its layers' widths "
                f"are fixed, or layers share their weights with other sites"
            )
        reserve = {name: inert_slots(site).nonzero().flatten().tolist() for name, site in sites.items()}
        config = getattr(model, "config", None)
        base = cls(
            name=str(getattr(config, "_name_or_path", "") or ""),
            kind=type(model).__name__,
            widths={name: site.width for name, site in sites.items()},
            activations={name: type(site.activation).__name__ for name, site in sites.items()},
            reserve={name: slots for name, slots in reserve.items() if slots},
        )
        names = whole_tensors(model, (*(classifier_of(model) if classifier else ()), *modules), sites)
        held = tensors_of(model)
        base.tensors.update({name: held[name].detach().cpu().clone() for name in names})
        base.digests.update(base.digests_in(model))
        return base

    def neurons(self, site: str) -> Tensor:
        """[n] int64: the base's own neurons of a site, without slots in reserve."""
        own = torch.ones(self.widths[site], dtype=torch.bool)
        own[self.reserve.get(site, [])] = False
        return own.nonzero().flatten()

    def digests_in(self, model: nn.Module) -> dict[str, str]:
        """Digests of what `model` holds of the base, whatever grew beside it."""
        cuts = {
            id(part.tensor): (part.dim, self.neurons(name))
            for name, site in adaptable_sites(model).items()
            for part in site.slices
            if name in self.widths and len(self.neurons(name)) < site.width
        }
        parts = ((name, tensor, cuts.get(id(tensor))) for name, tensor in tensors_of(model).items())
        return {
            name: digest(tensor if cut is None else tensor.detach().index_select(cut[0], cut[1].to(tensor.device)))
            for name, tensor, cut in parts
            if name not in self.tensors
        }

    def differences(self, model: nn.Module) -> list[str]:
        """Names of tensors that are not the base's."""
        found = self.digests_in(model)
        lacking = [name for name in self.tensors if name not in tensors_of(model)]
        return lacking + [name for name in {**self.digests, **found} if self.digests.get(name) != found.get(name)]


def adaptable_sites(model: nn.Module) -> dict[str, Site]:
    """The sites whose width can change and whose neurons share no layer with another site, by name."""
    return {
        site.name: site
        for site in find_sites(model)
        if not site.refusal("change its width") and not site.refusal("be separated")
    }


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once, under its first name."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            first.setdefault(id(value), (name, value))
    return dict(first.values())


def digest(tensor: Tensor) -> str:
    """Of the values bit for bit, the dtype and the shape."""
    held = tensor.detach().cpu().contiguous()
    seen = hashlib.sha256(f"{held.dtype} {tuple(held.shape)} ".encode())
    seen.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return seen.hexdigest()[:32]


def classifier_of(model: nn.Module) -> list[str]:
    """Names of the children and parameters outside the model's base.

    Raises:
        ValueError: a model that is none of transformers', or one without a head.
    """
    prefix = getattr(model, "base_model_prefix", "")
    children = {name for name, child in model.named_children() if any(True for _ in child.parameters())}
    outside = children | {name for name, _ in model.named_parameters(recurse=False)}
    if not prefix or prefix not in outside or len(outside) < 2:
        raise ValueError(
            f"classifier=True means what lies outside the base model of a transformers model, and {type(model).__name__} has "
            f"no such part; name it in modules=[...], of {sorted(outside)}"
        )
    return sorted(outside - {prefix})


def whole_tensors(model: nn.Module, modules: Sequence[str], sites: Mapping[str, Site]) -> list[str]:
    """Names of the tensors in `modules`, which are names of modules or parameters; raises as `AdapterBase.of`."""
    neurons = {id(part.tensor): name for name, site in sites.items() for part in site.slices}
    aliases: dict[int, list[str]] = {}
    for alias, value in model.state_dict(keep_vars=True).items():
        aliases.setdefault(id(value), []).append(alias)
    found = []
    for module in modules:
        held = {name: value for name, value in tensors_of(model).items() if f"{name}.".startswith(f"{module}.")}
        shared = [names for names in aliases.values() if any(f"{name}.".startswith(f"{module}.") for name in names)]
        for names in shared:
            if not all(f"{name}.".startswith(f"{module}.") for name in names):
                raise ValueError(
                    f"modules names {module!r}, which shares a weight with others ({', '.join(names)}): untie them"
                )
        if not held:
            raise ValueError(f"modules names {module!r}, but the model has no such module or parameter with weights")
        inside = sorted({neurons[id(value)] for value in held.values() if id(value) in neurons})
        if inside:
            raise ValueError(
                f"modules names {module!r}, which holds the neurons of {inside[:SHOWN]}; name other modules"
            )
        found += [name for name in held if name not in found]
    return found


def only_new_neurons(
    model: nn.Module,
    *,
    layers: int | str | Sequence[int | str] | None = None,
    classifier: bool = False,
    modules: Sequence[str] = (),
) -> AdapterBase:
    """Freezes all of `model` but the layers in which neurons are to grow, and returns what the model was before.

    In these layers `DropInConfig(freeze_existing=True)`, as in `DropInConfig.adapter`, sees to it that no old neuron learns.
    Call this before DropIn, the callback or Trainer gets the model.

    Args:
        layers: where neurons may grow, as in DropInConfig, which must name the same; None for all.
        classifier, modules: what else learns, see `AdapterBase.of`.

    Raises:
        ValueError: as `AdapterBase.of`; a layer that can hold no adapter. The model is unchanged then.
        RuntimeError: a DropIn watches the model.
    """
    if is_watched(model):
        raise RuntimeError("a DropIn watches this model; call only_new_neurons(model) before DropIn")
    base, held = AdapterBase.of(model, classifier=classifier, modules=modules), tensors_of(model)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        sites = adaptable_sites(model)
        _learns(parameter for site in find_sites(model) for parameter in site.parameters)
        chosen = list(sites.values()) if layers is None else select_sites(model, layers)
        for site in chosen:
            require_ability(site, "change its width", "can hold no neurons of an adapter")
            require_ability(site, "be separated", "can hold no neurons of an adapter")
    except Exception:
        for parameter, learnt in before:
            parameter.requires_grad_(learnt)
        raise
    model.requires_grad_(False)
    _learns(parameter for site in chosen for parameter in site.parameters)
    _learns(held[name] for name in base.tensors)
    return base


def _learns(tensors: Iterator[Tensor]) -> None:
    for tensor in tensors:
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            tensor.requires_grad_(True)


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


def _rows(parts: Sequence[Any], tensor_of: Callable[[Any], Tensor]) -> list[bytes]:
    """All slices of each neuron as bytes."""
    columns = []
    for part in parts:
        rows = tensor_of(part).movedim(part.dim, 0).cpu()
        columns.append(rows.reshape(len(rows), -1).contiguous().view(torch.uint8))
    return [row.tobytes() for row in torch.cat(columns, 1).numpy()]
