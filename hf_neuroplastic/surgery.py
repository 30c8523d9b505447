"""Carries decisions out on a model in place: same Parameters, same shapes; weights, optimizer state and statistics together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuroplastic_kernels import neuron_reinit
from neuroplastic_kernels.neurons import NeuronTensors

from .config import DropInConfig
from .decisions import Action, Decision
from .optimizer_state import state_slices
from .sites import Site, silences
from .statistics import NeuronStatistics


def apply_decisions(
    sites: Sequence[Site],
    statistics: Sequence[NeuronStatistics],
    decisions: Sequence[Decision],
    scores: Sequence[Tensor],
    *,
    action: Action,
    config: DropInConfig,
    optimizer: torch.optim.Optimizer | None,
    event: int,
) -> list[Tensor]:
    """Carries out one decision per site, all of the same action, in place.

    REPLACE gives the masked neurons fresh weights by `config.init` and `config.outgoing`; GROW activates slots in reserve
    with fresh incoming and zero outgoing weights; PRUNE silences neurons, folds their mean output into `down.bias` and puts
    them in reserve. In every case their optimizer state returns to its initial value and their statistics are forgotten.

    Everything that can be refused is refused before the first tensor is written.

    Args:
        scores: per site [N], used to find the strongest neurons for init="split".
        event: word of the random counter, different for each event.

    Returns:
        Per site [N] bool: the neurons that were changed. Only reserve slots can grow and only active neurons be replaced or
        pruned; a split needs a distinct strong neuron for each new one.

    Raises:
        TypeError: optimizer state that cannot be reset per neuron.
        ValueError: a decision of another action, a mask of another shape, or PRUNE and GROW where act(0) is not 0, so that
            a silenced neuron would go on learning.
    """
    init, outgoing = config.init, config.outgoing
    if action is Action.PRUNE:
        init, outgoing = "zero", "zero"
    elif action is Action.GROW:
        outgoing = "zero"
    masks = [
        _effective_mask(decision, action, site, known.active, init)
        for site, known, decision in zip(sites, statistics, decisions, strict=True)
    ]
    tensors = [
        _neuron_tensors(site, known, mask, score, config.threshold, init, optimizer, index)
        for index, (site, known, mask, score) in enumerate(zip(sites, statistics, masks, scores, strict=True))
    ]
    neuron_reinit(
        tensors,
        init=init,
        std=config.init_std,
        outgoing=outgoing,
        seed=config.random_seed,
        event=event,
        backend=config.backend,
    )
    for known, mask in zip(statistics, masks, strict=True):
        known.forget(mask)
        if action is Action.GROW:
            known.active |= mask
        elif action is Action.PRUNE:
            known.active &= ~mask
    return masks


def _effective_mask(decision: Decision, action: Action, site: Site, active: Tensor, init: str) -> Tensor:
    """The slots the action really concerns: reserve slots for GROW, active ones for the others."""
    if decision.action is not action:
        raise ValueError(f"decisions must all be {action}, got {decision.action} for site {site.name!r}")
    if decision.mask.dtype is not torch.bool or decision.mask.shape != (site.width,):
        raise ValueError(
            f"the mask of a decision on site {site.name!r} must be bool of shape {(site.width,)}, got {decision.mask.dtype} "
            f"of shape {tuple(decision.mask.shape)}"
        )
    if action is not Action.REPLACE and not silences(site):
        raise ValueError(f"site {site.name!r} cannot grow or be pruned: its activation does not map 0 to 0")
    if action is not Action.REPLACE and site.chained:
        raise ValueError(
            f"site {site.name!r} cannot grow or be pruned: one of its Linears belongs to another site as well"
        )
    mask = decision.mask & (~active if action is Action.GROW else active)
    if init == "split":
        donors = (active & ~mask).sum()
        mask = mask & (torch.cumsum(mask, 0) <= donors)
    return mask


def _neuron_tensors(
    site: Site,
    statistics: NeuronStatistics,
    mask: Tensor,
    score: Tensor,
    threshold: float,
    init: str,
    optimizer: torch.optim.Optimizer | None,
    index: int,
) -> NeuronTensors:
    up, down = site.up, site.down
    survivors = statistics.active & ~mask
    # New neurons should not take after the useless ones that this event's budget left in place.
    healthy = survivors & (score > threshold)
    models = torch.where(healthy.any(), healthy, survivors)
    return NeuronTensors(
        up_weight=up.weight.detach(),
        up_bias=None if up.bias is None else up.bias.detach(),
        down_weight=down.weight.detach(),
        down_bias=down.bias.detach() if down.bias is not None and down.bias.requires_grad else None,
        mask=mask,
        survivors=models,
        mean_output=statistics.mean_output,
        donors=_donors(mask, survivors, score) if init == "split" else None,
        state=(
            *state_slices(optimizer, up.weight, 0),
            *state_slices(optimizer, up.bias, 0),
            *state_slices(optimizer, down.weight, 1),
        ),
        site=index,
    )


def _donors(mask: Tensor, survivors: Tensor, score: Tensor) -> Tensor:
    """[N] int64: the k-th chosen neuron splits the k-th strongest survivor. Entries of unchosen neurons mean nothing."""
    strongest = torch.argsort(torch.where(survivors, score, -torch.inf), descending=True, stable=True)
    rank = (torch.cumsum(mask, 0) - 1).clamp_min(0)
    return strongest[rank]
