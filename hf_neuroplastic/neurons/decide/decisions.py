"""Which neurons of each site are to change, and when: one decision per site. Sites that do not learn are left as they are.

Pure functions of scores, ages and budget, in tensor arithmetic: nothing leaves the device.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DropInConfig
from ..observe.statistics import NeuronStatistics, WatchedSite


class Action(enum.Enum):
    """What happens to the chosen neurons."""

    REPLACE = "replace"  # active neurons make way for new ones
    GROW = "grow"  # slots in reserve become active
    PRUNE = "prune"  # active neurons go into reserve


@dataclass(frozen=True)
class Decision:
    """An action and the neurons it concerns: `mask` [N] bool, on the site's device.

    A mask rather than a list of indices: its size does not depend on its content, so deciding needs no synchronisation.
    `most`: no more neurons than this are chosen, where that is known without looking at the mask.
    """

    action: Action
    mask: Tensor
    most: int | None = None

    @property
    def indices(self) -> list[int]:
        """The chosen neurons in ascending order, read back to the host."""
        return self.mask.nonzero().squeeze(1).tolist()


def plan_replacement(watched: Sequence[WatchedSite], scores: Sequence[Tensor], config: DropInConfig) -> list[Decision]:
    """Whom to replace in each site."""
    return [
        decide_replacement(score, known.statistics, config) if known.learns else nobody(Action.REPLACE, score)
        for known, score in zip(watched, scores, strict=True)
    ]


def plan_widths(
    watched: Sequence[WatchedSite], scores: Sequence[Tensor], config: DropInConfig, targets: Sequence[int]
) -> tuple[list[Decision], list[Decision]]:
    """Which slots to activate in each site, and then which neurons to prune, so that `targets` of them are active."""
    pairs = [
        decide_width(score, known.statistics, config, target)
        if known.learns_whole
        else (nobody(Action.GROW, score), nobody(Action.PRUNE, score))
        for known, score, target in zip(watched, scores, targets, strict=True)
    ]
    return [grown for grown, _ in pairs], [pruned for _, pruned in pairs]


def scheduled_widths(
    config: DropInConfig, watched: Sequence[WatchedSite], step: int, total_steps: int | None
) -> list[int]:
    """Per site, how many neurons should be active after this step; empty if nothing is to be done about it.

    Raises:
        ValueError: a schedule of widths, but no `total_steps` yet.
    """
    if config.extra_neurons is None:
        return []
    if total_steps is None:
        raise ValueError(
            "total_steps was left to a DropInCallback, which has not seen training begin: pass the DropIn to one"
        )
    if step % config.interval and step != total_steps:
        return []
    progress = min(1.0, step / total_steps)
    return [
        max(0, known.start_width + round(config.extra_neurons.neurons(progress, known.start_width)))
        for known in watched
    ]


def slots_needed(config: DropInConfig, start: int) -> int:
    """How many slots beyond `start` active neurons the configuration will ask for at most."""
    if config.extra_neurons is None:
        return 0
    return max(0, math.ceil(config.extra_neurons.most_neurons(start) - 1e-6))  # 1e-6: 0.1 * 30 is 3, not 4


def is_due(step: int, config: DropInConfig, total_steps: int | None) -> bool:
    """Whether neurons may be replaced after optimizer step number `step` (the first is 1).

    Without `total_steps`, a share of training is no bound: at once for `start`, never for `stop`.
    """
    start = config.start if isinstance(config.start, int) else config.start * (total_steps or 0)
    stop = math.inf if config.stop is None else config.stop
    if isinstance(config.stop, float):
        stop = config.stop * (total_steps or math.inf)
    return start <= step < stop and step % config.interval == 0


def decide_replacement(scores: Tensor, statistics: NeuronStatistics, config: DropInConfig) -> Decision:
    """The neurons to replace: useless ones, and over-aged ones, lowest score first, within the budget.

    A neuron is a candidate if it is active, was observed since the last event, is at least `maturity` old, and either scores
    at most `threshold` or is older than `max_neuron_age`. The budget is `max_fraction` of the active neurons, rounded up
    (split needs a distinct donor for each, so there it is at most half of them). Pairs are rounded up to a whole pair, a
    candidate without another waits for one, and at least one neuron stays. A site that is cooling down replaces none.

    Args:
        scores: [N] float32.
        statistics: of the same site.
        config: threshold, maturity, max_fraction, max_neuron_age, cooldown, pairs.
    """
    useless = scores <= config.threshold
    if config.max_neuron_age is not None:
        useless |= statistics.age > config.max_neuron_age
    candidates = useless & statistics.active & statistics.seen & (statistics.age >= config.maturity)
    candidates &= statistics.rest >= config.cooldown
    active = statistics.active.sum()
    budget = torch.ceil(active * config.max_fraction - 1e-6)  # 1e-6: 0.07 * 100 is 7, not 7.000000000000001
    if config.init == "split":
        budget = torch.minimum(budget, active // 2)
    candidates &= ~scores.isnan()
    most = math.ceil(scores.numel() * config.max_fraction)
    if config.pairs:
        whole = torch.minimum(candidates.sum(), active - 1) // 2  # one stays, whose outgoing weights a pair is given
        budget = torch.minimum(torch.ceil(budget / 2), whole) * 2
        most = most + 1
    return Decision(Action.REPLACE, lowest(scores, candidates, budget), most)


def first_judged(statistics: NeuronStatistics, config: DropInConfig) -> Tensor:
    """[N] bool: neurons that DropIn made, at the first event at which they are old enough, or before."""
    return statistics.fresh & (statistics.age < max(config.maturity, 1) + config.interval)


def decide_width(
    scores: Tensor, statistics: NeuronStatistics, config: DropInConfig, target: int
) -> tuple[Decision, Decision]:
    """What to grow and what to prune so that `target` neurons are active, one of the two being nobody.

    Growth takes the first slots in reserve. Pruning takes the active, mature, observed neurons of lowest score.

    Args:
        scores: [N] float32.
        target: how many neurons should be active.
    """
    missing = target - statistics.active.sum()
    mature = statistics.active & statistics.seen & (statistics.age >= config.maturity)
    position = torch.arange(scores.numel(), dtype=scores.dtype, device=scores.device)
    grown = lowest(position, ~statistics.active, missing.clamp_min(0))
    pruned = lowest(scores, mature, (-missing).clamp_min(0))
    return Decision(Action.GROW, grown), Decision(Action.PRUNE, pruned)


def nobody(action: Action, scores: Tensor) -> Decision:
    """The decision to leave every neuron as it is; scores: [N]."""
    return Decision(action, torch.zeros_like(scores, dtype=torch.bool))


def lowest(scores: Tensor, candidates: Tensor, count: Tensor | int) -> Tensor:
    """[N] bool: the `count` candidates of lowest score; ties go to the lower index. NaN scores are never chosen."""
    ranked = torch.where(candidates & ~scores.isnan(), scores, math.inf)
    order = torch.argsort(ranked, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    return candidates & ~scores.isnan() & (rank < count)
