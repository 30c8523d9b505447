"""Cost of log-likelihood ratios: how much they tell, and how honestly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from .operating_points import DetectionMetric, trials


def cllr(llr: ArrayLike, labels: ArrayLike, positive_label: int = 0) -> float:
    """Cost of log-likelihood ratios in bits: 0 is perfect, 1 what a ratio of 1 for every trial costs, above 1 misleads.

    The mean of log2(1 + e^-llr) over bona fide trials and that of log2(1 + e^llr) over spoofed ones, halved. Source: C_llr of
    Brummer and du Preez (2006), "Application-independent evaluation of speaker detection".

    llr: [n], natural logarithms. Errors as `detection_error_tradeoff`.
    """
    values, is_positive = trials(llr, labels, positive_label)
    bona_fide, spoofed = np.logaddexp(0, -values[is_positive]).mean(), np.logaddexp(0, values[~is_positive]).mean()
    return float(bona_fide + spoofed) / (2 * math.log(2))


def min_cllr(scores: ArrayLike, labels: ArrayLike, positive_label: int = 0) -> float:
    """`cllr` after the best rising calibration of the scores (pool adjacent violators): what their order alone tells.

    Source: Brummer and du Preez (2006), C_llr^min. Errors as `detection_error_tradeoff`.
    """
    values, is_positive = trials(scores, labels, positive_label)
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)  # equal scores are calibrated alike
    positive = np.bincount(group, weights=is_positive)
    share = np.clip(isotonic_regression(positive / count, weights=count).x, 0, 1)
    odds = positive.sum() / (count.sum() - positive.sum())
    with np.errstate(divide="ignore"):
        ratio = np.log(share) - np.log1p(-share) - math.log(odds)  # infinite where a score is of one class only
    at_bona_fide, at_spoofed = np.logaddexp(0, -ratio), np.logaddexp(0, ratio)
    costs = [
        np.where(n > 0, cost, 0) @ n / n.sum() for n, cost in ((positive, at_bona_fide), (count - positive, at_spoofed))
    ]
    return float(sum(costs)) / (2 * math.log(2))


class LogLikelihoodRatioCost(DetectionMetric):
    """`cllr` and `min_cllr` as an `evaluate.Metric`.

    `LogLikelihoodRatioCost().compute(predictions=llr, references=labels)` gives {"cllr": ..., "min_cllr": ...}.
    """

    description = "Cost of log-likelihood ratios in bits, as they are and after the best calibration."

    def _compute(self, predictions: Any, references: Any, positive_label: int = 0) -> dict[str, float]:
        return {
            "cllr": cllr(predictions, references, positive_label),
            "min_cllr": min_cllr(predictions, references, positive_label),
        }
