"""Detection cost: what the errors of a detector cost, at the best threshold and at the one that Bayes' rule names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .operating_points import DetectionMetric, detection_error_tradeoff, trials


@dataclass(frozen=True)
class DetectionCosts:
    """Prior and costs of the detection cost function; the defaults are those of ASVspoof 5, track 1.

    prior_spoof: probability of a spoofed trial. cost_miss, cost_false_alarm: of rejecting bona fide and of accepting spoofed
    speech.
    """

    prior_spoof: float = 0.05
    cost_miss: float = 1.0
    cost_false_alarm: float = 10.0

    def __post_init__(self) -> None:
        costs = (self.cost_miss, self.cost_false_alarm)
        if not 0 < self.prior_spoof < 1 or not all(0 < cost < math.inf for cost in costs):
            raise ValueError(f"prior_spoof must lie between 0 and 1, and costs be positive; got {self}.")

    @property
    def beta(self) -> float:
        """Weight of a false rejection, where a false acceptance weighs 1."""
        return self.cost_miss * (1 - self.prior_spoof) / (self.cost_false_alarm * self.prior_spoof)

    @property
    def threshold(self) -> float:
        """The log-likelihood ratio from which on a trial is accepted at the lowest expected cost."""
        return -math.log(self.beta)


def min_dcf(
    scores: ArrayLike, labels: ArrayLike, positive_label: int = 0, *, costs: DetectionCosts | None = None
) -> tuple[float, float]:
    """Smallest normalised detection cost, and its threshold: (beta FRR + FAR) / min(beta, 1) over all thresholds.

    1 is the cost of the better of accepting all and rejecting all. Source: the evaluation plan of ASVspoof 5 (2024), minDCF of
    track 1. Arguments and errors as `detection_error_tradeoff`.
    """
    costs = costs or DetectionCosts()
    far, frr, thresholds = detection_error_tradeoff(scores, labels, positive_label)
    cost = (costs.beta * frr + far) / min(costs.beta, 1.0)
    best = int(np.argmin(cost))
    return float(cost[best]), float(thresholds[best])


def act_dcf(
    llr: ArrayLike, labels: ArrayLike, positive_label: int = 0, *, costs: DetectionCosts | None = None
) -> float:
    """Normalised detection cost at the threshold -ln(beta) on log-likelihood ratios: what a user pays who trusts them.

    llr: [n], natural logarithms. Source: the evaluation plan of ASVspoof 5 (2024), actDCF. Errors as
    `detection_error_tradeoff`.
    """
    costs = costs or DetectionCosts()
    values, is_positive = trials(llr, labels, positive_label)
    accepted = values >= costs.threshold
    return float((costs.beta * (~accepted)[is_positive].mean() + accepted[~is_positive].mean()) / min(costs.beta, 1.0))


class DetectionCost(DetectionMetric):
    """`min_dcf` and `act_dcf` as an `evaluate.Metric`.

    `DetectionCost().compute(predictions=llr, references=labels)` gives {"min_dcf": ..., "min_dcf_threshold": ...,
    "act_dcf": ...}; act_dcf means something where predictions are log-likelihood ratios. Options as `DetectionCosts`.
    """

    description = "Normalised detection cost, at the best threshold and at the one of Bayes' rule (ASVspoof 5)."

    def _compute(self, predictions: Any, references: Any, positive_label: int = 0, **options: Any) -> dict[str, float]:
        costs = DetectionCosts(**options)
        smallest, threshold = min_dcf(predictions, references, positive_label, costs=costs)
        actual = act_dcf(predictions, references, positive_label, costs=costs)
        return {"min_dcf": smallest, "min_dcf_threshold": threshold, "act_dcf": actual}
