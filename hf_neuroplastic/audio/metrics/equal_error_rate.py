"""Equal error rate: the rate at which a detector errs equally often on bona fide and on spoofed trials."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .operating_points import DetectionMetric, detection_error_tradeoff, error_rates, trials


def equal_error_rate(
    scores: ArrayLike, labels: ArrayLike, positive_label: int = 0, *, interpolate: bool = False
) -> tuple[float, float]:
    """Equal error rate (0 to 1) and its threshold; arguments and errors as `detection_error_tradeoff`.

    By default the rule of the ASVspoof organisers' scripts: the mean of FAR and FRR at the operating point where they are
    nearest, at the lowest threshold of several. Trials of equal score fall together here, and one by one there.

    Args:
        interpolate: join the operating points by straight lines in the (FAR, FRR) plane, which is what a detector reaches that
            picks at random between two thresholds; the EER is FAR = FRR where the line crosses the diagonal. The crossing is
            unique. Not the EER of the convex hull (ROCCH-EER, Brummer and de Villiers 2013), which is never larger.

    The threshold of an interpolated EER is the nearer one of the two that the crossing lies between, the lower one on a draw.
    """
    far, frr, thresholds = detection_error_tradeoff(scores, labels, positive_label)
    if not interpolate:
        nearest = int(np.argmin(np.abs(frr - far)))
        return float(frr[nearest] + far[nearest]) / 2, float(thresholds[nearest])
    after = int(np.searchsorted(frr - far, 0, side="right"))
    before = after - 1
    low, high = far[before] - frr[before], frr[after] - far[after]
    rate = (frr[before] * high + frr[after] * low) / (low + high)
    return float(rate), float(thresholds[before if low <= high else after])


def equal_error_rate_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    positive_label: int = 0,
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the EER: trials are drawn with replacement within each class.

    Trials count as independent: those that share a speaker or an attack make the true interval wider.

    Raises:
        ValueError: as `detection_error_tradeoff`; a confidence that is not between 0 and 1, or no draws.
    """
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"confidence must lie between 0 and 1, and draws be at least 1; got {confidence} and {draws}.")
    values, is_positive = trials(scores, labels, positive_label)
    distinct, group = np.unique(values, return_inverse=True)
    classes, rng = (group[is_positive], group[~is_positive]), np.random.default_rng(seed)
    rates = np.empty(draws)
    for draw in range(draws):
        counts = (np.bincount(rng.choice(each, each.size), minlength=distinct.size) for each in classes)
        far, frr = error_rates(*counts)
        nearest = np.argmin(np.abs(frr - far))
        rates[draw] = (far[nearest] + frr[nearest]) / 2
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class EqualErrorRate(DetectionMetric):
    """`equal_error_rate` as an `evaluate.Metric`.

    `EqualErrorRate().compute(predictions=scores, references=labels)` gives {"eer": ..., "eer_threshold": ...}; with draws=1000
    also "eer_low" and "eer_high", see `equal_error_rate_interval`.
    """

    description = "Rate at which a detector of spoofed audio errs equally often on bona fide and on spoofed trials."

    def _compute(
        self,
        predictions: Any,
        references: Any,
        positive_label: int = 0,
        interpolate: bool = False,
        draws: int = 0,
        seed: int = 0,
    ) -> dict[str, float]:
        eer, threshold = equal_error_rate(predictions, references, positive_label, interpolate=interpolate)
        found = {"eer": eer, "eer_threshold": threshold}
        if draws:
            found["eer_low"], found["eer_high"] = equal_error_rate_interval(
                predictions, references, positive_label, draws=draws, seed=seed
            )
        return found
