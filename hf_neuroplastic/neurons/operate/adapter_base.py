"""What a model was before neurons grew in it, and the freezing of all that: the base of neuron adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..observe.hooks import is_watched
from ..sites import Site, find_sites, inert_slots, require_ability, select_sites

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
