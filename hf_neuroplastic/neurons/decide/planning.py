"""What is to be done with the neurons of all sites: one decision per site. Frozen sites are left as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..config import DropInConfig
from ..observe.statistics import NeuronStatistics
from ..sites import Site
from .criteria import score
from .decisions import Action, Decision, decide_replacement, decide_width, nobody, target_width


def score_sites(
    sites: Sequence[Site], statistics: Sequence[NeuronStatistics], config: DropInConfig, event: int
) -> list[Tensor]:
    """Per site [N] float32: the usefulness of each neuron by the configured criterion."""
    return [
        score(
            config.criterion, site, known, relative=config.relative,
            seed=config.random_seed, event=event, site_index=index,
        )
        for index, (site, known) in enumerate(zip(sites, statistics, strict=True))
    ]  # fmt: skip


def plan_replacement(
    sites: Sequence[Site], statistics: Sequence[NeuronStatistics], scores: Sequence[Tensor], config: DropInConfig
) -> list[Decision]:
    """Whom to replace in each site."""
    return [
        decide_replacement(s, known, config) if site.trainable else nobody(Action.REPLACE, s)
        for site, known, s in zip(sites, statistics, scores, strict=True)
    ]


def plan_widths(
    sites: Sequence[Site],
    statistics: Sequence[NeuronStatistics],
    scores: Sequence[Tensor],
    config: DropInConfig,
    targets: Sequence[int],
) -> tuple[list[Decision], list[Decision]]:
    """Which slots to activate in each site, and then which neurons to prune, so that `targets` of them are active."""
    pairs = [
        decide_width(s, known, config, target) if site.trainable else (nobody(Action.GROW, s), nobody(Action.PRUNE, s))
        for site, known, s, target in zip(sites, statistics, scores, targets, strict=True)
    ]
    return [grown for grown, _ in pairs], [pruned for _, pruned in pairs]


def scheduled_widths(
    config: DropInConfig, start_widths: Sequence[int], step: int, total_steps: int | None
) -> list[int]:
    """Per site, how many neurons should be active after this step; empty if nothing is to be done about it.

    Args:
        start_widths: active neurons per site at the start of training.

    Raises:
        ValueError: a course of widths, but no `total_steps`.
    """
    if config.active_neurons is None and config.active_share is None:
        return []
    if total_steps is None:
        raise ValueError(
            "active_neurons and active_share follow the progress of training: pass DropIn(..., total_steps=...)"
        )
    if step % config.interval and step != total_steps:
        return []
    targets = [target_width(config, start, min(1.0, step / total_steps)) for start in start_widths]
    return [target for target in targets if target is not None]
