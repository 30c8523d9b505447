"""Finds the sites of a model, and selects sites by index, name or pattern."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..checks import check_layers
from .convolution import convolution_sites, unsuitable
from .feed_forward import ARCHITECTURES, architecture_site, sequential_sites
from .recurrent import RecurrentSite, checked_recurrent
from .requirements import refuse_sharing
from .sequential import parts_of
from .site import Site

logger = logging.getLogger(__name__)


def find_sites(model: nn.Module, recurrent: Mapping[str, str] | None = None) -> list[Site]:
    """Every site of `model` that can be watched and operated on, in the order of its modules.

    Args:
        recurrent: the GRUs to take in, and the Linear that takes the output of each (see DropInConfig.recurrent).

    Raises:
        TypeError: no module; or a known layer whose parts are not what they should be (wrapped or quantised Linears, say).
        ValueError: weights or activations that two places share: replacing a neuron here would change the other place.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named = checked_recurrent(model, recurrent)
    sites = [site for name, module in model.named_modules() for site in _sites_of(name, module, named)]
    refuse_sharing(model, sites)
    configs = {name: module.config for name, module in model.named_modules() if hasattr(module, "config")}
    return [replace(site, configs=_configs_of(site, configs)) for site in _linked(sites)]


def select_sites(
    model: nn.Module,
    layers: int | str | Sequence[int | str] | None = None,
    recurrent: Mapping[str, str] | None = None,
) -> list[Site]:
    """The trainable sites of `model` that `layers` names (see DropInConfig.layers), in model order.

    Without `layers`, frozen sites are left out. A frozen site that is asked for is an error, since neurons reborn in it could
    not learn.

    Raises:
        ValueError: nothing matches, or what matches is frozen; the message lists what there is.
    """
    check_layers(layers)
    sites = find_sites(model, recurrent)
    if not sites:
        raise ValueError(_nothing_known(model))
    for reason in () if recurrent else _near_misses(model):
        logger.info("not watched: %s", reason)
    if layers is None:
        chosen = [site for site in sites if site.trainable]
        if not chosen:
            raise ValueError(
                f"all {len(sites)} feed-forward layers of {type(model).__name__} are frozen, and new neurons in them could "
                f"not learn; unfreeze some before DropIn(model)"
            )
        if len(chosen) < len(sites):
            logger.info("%d frozen feed-forward layers are left alone", len(sites) - len(chosen))
        return chosen
    entries = [layers] if isinstance(layers, (int, str)) else list(layers)
    indices = {index for entry in entries for index in _matches(entry, sites)}
    chosen = [sites[index] for index in sorted(indices)]
    frozen = [site.name for site in chosen if not site.trainable]
    if frozen:
        raise ValueError(f"layers selects frozen feed-forward layers {frozen}; unfreeze them or select others")
    return chosen


def _sites_of(name: str, module: nn.Module, recurrent: Mapping[str, RecurrentSite]) -> Iterator[Site]:
    if isinstance(module, nn.Sequential):
        parts = parts_of(name, module)
        yield from sequential_sites(parts, module, name)
        yield from convolution_sites(parts, module, name)
    elif name in recurrent:
        yield recurrent[name]
    else:
        site = architecture_site(name, module)
        if site is not None:
            yield site


def _linked(sites: list[Site]) -> list[Site]:
    """The same sites, told which of them share a layer."""
    ups, downs = {id(site.up) for site in sites}, {id(site.down) for site in sites}
    return [
        replace(site, follows=id(site.up) in downs, chained=id(site.up) in downs or id(site.down) in ups)
        for site in sites
    ]


def _configs_of(site: Site, configs: dict[str, Any]) -> tuple[Any, ...]:
    """Encoder-decoder models give their parts configurations of their own, which need not be the objects inside the parts."""
    parts = site.name.split(".")
    around = (configs.get(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    held = {
        id(config): config
        for config in around
        if site.width_key and getattr(config, site.width_key, None) == site.width
    }
    return tuple(held.values())


def _matches(entry: int | str, sites: list[Site]) -> list[int]:
    available = ", ".join(f"{index}: {site.name}" for index, site in enumerate(sites))
    if isinstance(entry, int):
        if not -len(sites) <= entry < len(sites):
            raise ValueError(f"layers asks for index {entry}, but the model has these sites: {available}")
        return [entry % len(sites)]
    exact = [index for index, site in enumerate(sites) if site.name == entry]
    if exact:
        return exact
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise ValueError(f"layers entry {entry!r} is neither a site's name nor a regular expression: {error}") from None
    found = [index for index, site in enumerate(sites) if pattern.search(site.name)]
    if not found:
        raise ValueError(f"layers entry {entry!r} matches none of the model's sites: {available}")
    return found


def _nothing_known(model: nn.Module) -> str:
    supported = "; ".join(architecture.models for architecture in ARCHITECTURES)
    message = (
        f"{type(model).__name__} has no feed-forward layer that DropIn knows. Supported: {supported}; in a "
        f"torch.nn.Sequential, Linear-activation-Linear and convolution-(BatchNorm)-activation-convolution, as in the "
        f"blocks of ResNet; and a torch.nn.GRU that DropInConfig(recurrent=...) names"
    )
    return ". ".join([message, *dict.fromkeys(_near_misses(model))])


def _near_misses(model: nn.Module) -> Iterator[str]:
    """Why layers that look like sites are none."""
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj"):
            yield f"{type(module).__name__} keeps its gate and up projections in one weight, which DropIn cannot part"
        elif isinstance(module, nn.RNNBase):
            plain = isinstance(module, nn.GRU) and not module.bidirectional
            yield f"{name!r} is a {type(module).__name__}" + (
                ": name it and the Linear that takes its output in DropInConfig(recurrent=...)"
                if plain
                else ", and of recurrent layers DropIn knows only a unidirectional GRU"
            )
        elif isinstance(module, nn.Sequential):
            yield from unsuitable(parts_of(name, module))
