"""Requirements of a layer that DropIn operates on, and refusals of settings that a layer cannot serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from neuroplastic_kernels import is_sharded, split_over

from ..config import DropInConfig
from .engines import refuse_engines
from .site import Ability, Site


def checked_linears(name: str, up: Any, activation: Any, down: Any, gate: Any = None) -> None:
    """Raises TypeError or ValueError unless these can be the parts of a feed-forward site."""
    for role, part in (("up", up), ("down", down), ("gate", gate)):
        if role != "gate" or part is not None:
            require_kind(name, f"{role} projection", part, (nn.Linear,))
            require_whole(name, part)
    if not isinstance(activation, nn.Module):
        raise TypeError(
            f"the activation of {name!r} must be a torch.nn.Module, got {activation!r}; name it in config.hidden_act"
        )
    for part in (up, gate):
        if part is not None and part.out_features != down.in_features:
            raise ValueError(f"{name!r}: up gives {part.out_features} neurons but down takes {down.in_features}")


def require_kind(name: str, role: str, part: Any, kinds: tuple[type, ...]) -> None:
    """Raises TypeError unless `part` is of one of the classes themselves."""
    if type(part) not in kinds:
        allowed = " or ".join(f"torch.nn.{kind.__name__}" for kind in kinds)
        raise TypeError(
            f"the {role} of {name!r} must be a plain {allowed}, got {type(part).__module__}.{type(part).__name__}; use "
            f"DropIn on a model without adapters and quantisation, and unpatch() it before they are added"
        )


def require_whole_site(site: Site) -> None:
    """Refuses a site one of whose weights is no plain Parameter of its whole shape.

    Raises:
        TypeError: the weight is sharded or flattened (FSDP, tensor parallelism, DeepSpeed's ZeRO), or recomputed from other
            parameters (weight_norm, parametrizations).
    """
    for layer in site.layers:
        require_whole(site.name, layer)


def require_whole(name: str, layer: nn.Module) -> None:
    """`require_whole_site` for one layer."""
    refuse_engines(name, layer)
    for weight, shape in _weights(layer):
        if is_sharded(weight) or weight.shape != shape:
            raise TypeError(
                f"a weight of {name!r} is sharded, or flattened (FSDP1, ZeRO-3): make the DropIn, and room for growth, before "
                f"the model is sharded by fully_shard (FSDP2); otherwise train data-parallel (DDP), or without DropIn"
            )
        if isinstance(weight, nn.Parameter) and type(weight) is not nn.Parameter:
            raise TypeError(
                f"a weight of {name!r} is a {type(weight).__name__}, quantised or of another form: its neurons can be neither "
                f"watched nor replaced; use DropIn on a model in floating point"
            )
        if not isinstance(weight, nn.Parameter):
            raise TypeError(
                f"a weight of {name!r} is recomputed from other parameters (weight_norm, spectral_norm, pruning), so a change "
                f"to it would be lost; remove that before DropIn"
            )


def require_operable_site(model: nn.Module, site: Site, *, freezes: bool) -> None:
    """As `require_whole_site`, but takes weights that `fully_shard` has split, each once.

    Raises:
        TypeError: as there; shards of other makers, or of a kind of layer that is no feed-forward layer of Linears by itself.
        freezes: the configuration freezes what exists, by hooks that shards do not call.
    """
    if not any(is_sharded(weight) for weight in site.weights):
        return require_whole_site(site)
    reason = None
    if not _fully_sharded(model, site.name):
        reason = (
            "by tensor parallelism or by hand, not by fully_shard (FSDP2), so that no process sees its neurons whole"
        )
    elif any(len(split_over(weight)) > 1 for weight in site.weights):
        reason = f"more than once, as {[weight.placements for weight in site.weights]}"  # type: ignore[attr-defined]
    elif site.chained or not all(isinstance(layer, nn.Linear) for layer in site.layers):
        reason = "and is no feed-forward layer of Linears by itself"
    elif freezes:
        reason = "and freeze_existing=True works through gradients of whole weights"
    if reason is not None:
        raise TypeError(
            f"{site.name!r} is sharded {reason}; train data-parallel (DDP), or exclude the layer with DropInConfig(layers=...)"
        )


def _fully_sharded(model: nn.Module, path: str) -> bool:
    """Whether `fully_shard` was called on the module at `path` of `model`, on a part, or on a module around."""
    around = [model, *(model.get_submodule(path[:end]) for end in _ends(path))]
    return any(isinstance(module, FSDPModule) for module in (*around, *around[-1].modules()))


def _ends(path: str) -> Iterator[int]:
    yield from (index for index, letter in enumerate(path) if letter == ".")
    if path:
        yield len(path)


def _weights(layer: Any) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The weights of a layer and the shapes they should have."""
    if isinstance(layer, nn.Linear):
        yield layer.weight, (layer.out_features, layer.in_features)
    elif isinstance(layer, nn.GRU):
        last = layer.num_layers - 1
        gates, inputs = 3 * layer.hidden_size, layer.hidden_size if last else layer.input_size
        yield getattr(layer, f"weight_ih_l{last}"), (gates, inputs)
        yield getattr(layer, f"weight_hh_l{last}"), (gates, layer.hidden_size)
    else:
        yield layer.weight, (layer.out_channels, layer.in_channels, *layer.kernel_size)


def require_ability(site: Site, ability: Ability, purpose: str) -> None:
    """Raises ValueError if the neurons of `site` cannot `ability`; the message says which site cannot serve which purpose."""
    reason = site.refusal(ability)
    if reason is not None:
        raise ValueError(f"site {site.name!r} {purpose}: {reason}")


def require_abilities(sites: Sequence[Site], config: DropInConfig) -> None:
    """Refuses a configuration that asks of `sites` what they cannot do, before anything is changed.

    Raises:
        ValueError: naming the setting, the site, the reason and the fix.
    """
    wanted: list[tuple[bool, Ability, str, str]] = [
        (config.init == "split", "be split", "init='split'", "use another init"),
        (config.synaptic_lr > 0, "be scaled", f"synaptic_lr={config.synaptic_lr}", "set synaptic_lr=0"),
        (config.freeze_existing, "be separated", "freeze_existing=True", "set freeze_existing=False"),
        (config.scales_steps, "be separated", "young_plasticity or old_plasticity", "leave both at 1"),
        (config.extra_neurons is not None, "be silenced", "extra_neurons", "leave extra_neurons at None"),
    ]
    for asked, ability, setting, fix in wanted:
        for site in sites:
            reason = site.refusal(ability) if asked else None
            if reason is not None:
                raise ValueError(
                    f"{setting} is not possible for site {site.name!r}: {reason}; {fix}, or select other sites with `layers`"
                )


def refuse_sharing(model: nn.Module, sites: Sequence[Site]) -> None:
    """Raises ValueError if two places of `model` share a weight of a site, or two sites share what is watched."""
    holders: dict[int, list[str]] = {}
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(parameter_name)
    watched = Counter(id(site.watched) for site in sites)
    for site in sites:
        for parameter in (*(neuron_slice.tensor for neuron_slice in site.slices), site.down.bias):
            if parameter is not None and len(holders.get(id(parameter), [])) > 1:
                raise ValueError(
                    f"site {site.name!r} shares a weight ({', '.join(holders[id(parameter)])}): replacing a neuron in one "
                    f"place would change the other; untie the weights first"
                )
        if watched[id(site.watched)] > 1:
            raise ValueError(
                f"site {site.name!r} shares its activation module with another site; give each its own instance"
            )
