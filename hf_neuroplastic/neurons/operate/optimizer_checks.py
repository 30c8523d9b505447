"""What DropIn asks of the optimizer that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import DropInConfig
from ..sites import Site
from .optimizer_state import unwrap_optimizer


def checked_optimizer(optimizer: Any, sites: Sequence[Site], config: DropInConfig) -> torch.optim.Optimizer | None:
    """The torch optimizer inside `optimizer`; None for None.

    Raises:
        TypeError: none inside, or one that keeps state in 8 bits although neurons are to be changed.
        ValueError: one that trains no weight of `sites`.
    """
    if optimizer is None:
        return None
    inner = unwrap_optimizer(optimizer)
    held = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
    if not any(id(weight) in held for site in sites for weight in site.weights):
        raise ValueError("optimizer holds no parameter of the watched layers; pass the one that trains this model")
    if config.changes_neurons and any(group.get("state_bits") == 8 for group in inner.param_groups):
        raise TypeError("8-bit optimizer state cannot be reset neuron by neuron: use NeuroPlastic(..., state_bits=32)")
    return inner


def loss_scale(optimizer: Any) -> Tensor | float:
    """What mixed precision multiplied the loss by: the scaler's own tensor, so that asking needs no synchronisation."""
    scale = getattr(getattr(optimizer, "scaler", None), "_scale", None)
    return 1.0 if scale is None else scale
