"""Weights that a training engine keeps in a form of its own, known by the marks that engines leave; no engine is imported."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .site import Site

INSTEAD = "train data-parallel (DDP) or with fully_shard (FSDP2), or without DropIn"


def engine_of(weight: Any) -> str | None:
    """What an engine has made of a weight, in words; None where the weight is whole and is itself what is trained.

    Sharded tensors (DTensor) are not told apart here: FSDP2 shows whole weights while a layer runs, tensor parallelism does
    not.
    """
    base = getattr(weight, "_base", None)  # FSDP1 shows views of its vector while a layer runs
    if any(getattr(each, "_fsdp_flattened", False) for each in (weight, base)):
        return "is a part of a vector of FSDP1 (FullyShardedDataParallel)"
    if hasattr(weight, "ds_id"):
        return "is sharded by DeepSpeed's ZeRO-3"
    if hasattr(weight, "_hp_mapping"):
        return "is a copy of what DeepSpeed's ZeRO trains, and would be overwritten"
    return None


def refuse_engines(name: str, layer: nn.Module) -> None:
    """Raises TypeError where an engine keeps a weight of `layer`, of the site `name`, in a form of its own."""
    shown = (each for each in vars(layer).values() if isinstance(each, Tensor))  # FSDP1 takes Parameters off
    for weight in (*shown, *layer.parameters(recurse=False)):
        engine = engine_of(weight)
        if engine is not None:
            raise TypeError(f"a weight of {name!r} {engine}, and DropIn needs whole neurons: {INSTEAD}")


def require_unsplit(site: Site, z: Tensor) -> None:
    """What is asked once, when a site is observed for the first time. z: the neurons' outputs.

    Raises:
        TypeError: the neurons, or the weights that make them, are split over processes.
    """
    for layer in site.layers:
        refuse_engines(site.name, layer)
    split = hasattr(z, "device_mesh") or z.shape[site.neuron_dim] != site.width
    # distribute_module is what torch's tensor-parallel styles go by; FSDP2 does not
    styled = any(getattr(layer, "_distribute_module_applied", False) for layer in site.layers)
    if split or styled:
        raise TypeError(
            f"the neurons of {site.name!r} are split over processes by tensor parallelism, and DropIn needs whole ones: leave "
            f"this layer out of the plan or of DropInConfig(layers=...), {INSTEAD}"
        )
