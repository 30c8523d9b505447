"""Which neurons to change: pure functions of scores, ages and budget. Tensor arithmetic only, so nothing leaves the device."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DropInConfig
from ..observe.statistics import NeuronStatistics


class Action(enum.Enum):
    """What happens to the chosen neurons."""

    REPLACE = "replace"  # active neurons make way for new ones
    GROW = "grow"  # slots in reserve become active
    PRUNE = "prune"  # active neurons go into reserve


@dataclass(frozen=True)
class Decision:
    """An action and the neurons it concerns: `mask` [N] bool, on the site's device.

    A mask rather than a list of indices: its size does not depend on its content, so deciding needs no synchronisation.
    """

    action: Action
    mask: Tensor

    @property
    def indices(self) -> list[int]:
        """The chosen neurons in ascending order, read back to the host."""
        return self.mask.nonzero().squeeze(1).tolist()


def is_due(step: int, config: DropInConfig, total_steps: int | None) -> bool:
    """Whether neurons may be replaced after optimizer step number `step` (the first is 1).

    Raises:
        ValueError: a start or stop given as a share of training, but no `total_steps`.
    """
    start = _in_steps("start", config.start, total_steps)
    stop = math.inf if config.stop is None else _in_steps("stop", config.stop, total_steps)
    return start <= step < stop and step % config.interval == 0


def _in_steps(name: str, point: int | float, total_steps: int | None) -> float:
    if not isinstance(point, float):
        return point
    if total_steps is None:
        raise ValueError(
            f"{name}={point} is a share of the whole training, whose length is not known; pass DropIn(..., "
            f"total_steps=...) or give {name} in steps as an int"
        )
    return point * total_steps


def decide_replacement(scores: Tensor, statistics: NeuronStatistics, config: DropInConfig) -> Decision:
    """The neurons to replace: useless ones, and over-aged ones, lowest score first, within the budget.

    A neuron is a candidate if it is active, was observed since the last event, is at least `maturity` old, and either scores
    at most `threshold` or is older than `max_neuron_age`. The budget is `max_fraction` of the active neurons, rounded up
    (split needs a distinct donor for each, so there it is at most half of them). A site that is cooling down replaces none.

    Args:
        scores: [N] float32.
        statistics: of the same site.
        config: threshold, maturity, max_fraction, max_neuron_age, cooldown.
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
    return Decision(Action.REPLACE, lowest(scores, candidates, budget))


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


def target_width(config: DropInConfig, start: int, progress: float) -> int | None:
    """How many neurons of a site that started with `start` should be active; None if the configuration does not say."""
    if config.active_neurons is not None:
        return max(0, start + round(config.active_neurons(progress)))
    if config.active_share is not None:
        return max(0, round(start * config.active_share(progress)))
    return None


def slots_needed(config: DropInConfig, start: int) -> int:
    """How many slots beyond `start` the configuration will ask for at most."""
    if config.active_neurons is not None:
        return max(0, math.ceil(config.active_neurons.largest()))
    if config.active_share is not None:
        return max(0, math.ceil(start * (config.active_share.largest() - 1.0)))
    return 0


def nobody(action: Action, scores: Tensor) -> Decision:
    """The decision to leave every neuron as it is; scores: [N]."""
    return Decision(action, torch.zeros_like(scores, dtype=torch.bool))


def lowest(scores: Tensor, candidates: Tensor, count: Tensor | int) -> Tensor:
    """[N] bool: the `count` candidates of lowest score; ties go to the lower index. NaN scores are never chosen."""
    ranked = torch.where(candidates & ~scores.isnan(), scores, math.inf)
    order = torch.argsort(ranked, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    return candidates & ~scores.isnan() & (rank < count)
