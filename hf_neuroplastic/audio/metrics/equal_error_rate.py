"""Equal error rate, detection error trade-off and tandem cost of a detector that accepts bona fide trials.

Scores are "the higher, the more bona fide": a trial is accepted if its score >= threshold. False acceptance rate
(FAR): share of spoofed trials accepted. False rejection rate (FRR): share of bona fide trials rejected. From a
classifier's logits [B, 2] in label order (bonafide, spoof) take `logits[:, 0] - logits[:, 1]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DESCRIPTION = "Rate at which a detector of spoofed audio errs equally often on bona fide and on spoofed trials."
INPUTS = """
Args:
    predictions: scores, one per trial, the higher the more like `positive_label`.
    references: integer labels, one per trial.
    positive_label: the label to accept (default 0, bona fide); every other label is to be rejected.
Returns:
    eer: equal error rate, 0 to 1.
    eer_threshold: score at which it is reached most nearly.
"""


def detection_error_tradeoff(
    scores: ArrayLike, labels: ArrayLike, positive_label: int = 0
) -> tuple[Array, Array, Array]:
    """FAR, FRR and thresholds, [K + 1] each, of every distinct operating point for K distinct scores.

    Thresholds ascend and end with infinity (all rejected); FAR falls from 1 to 0 and FRR rises from 0 to 1. Trials of
    equal score always fall together, so their order does not matter.

    Args:
        scores: [n], finite, the higher the more like the positive class.
        labels: [n], with trials of the positive label and of at least one other.
        positive_label: the label to accept.

    Raises:
        ValueError: other shapes, unequal lengths, NaN or infinite scores, or no trial of one of the two classes.
    """
    accepted, rejected, thresholds = _count_errors(scores, labels, positive_label)
    return accepted / accepted[0], rejected / rejected[-1], thresholds


def equal_error_rate(scores: ArrayLike, labels: ArrayLike, positive_label: int = 0) -> tuple[float, float]:
    """Equal error rate (0 to 1) and its threshold; arguments and errors as `detection_error_tradeoff`.

    The operating points are joined by straight lines in the (FAR, FRR) plane, which is what a detector reaches that
    picks at random between two thresholds; the EER is FAR = FRR where that line crosses the diagonal. FRR - FAR rises
    strictly from one
    operating point to the next, so the crossing exists and is unique: ties need no convention and n trials no minimum. This is
    not the EER of the convex hull (ROCCH-EER, Brummer and de Villiers 2013), which is never larger.

    The threshold is the one of the two ends of the crossing line where |FAR - FRR| is smaller, the lower one on a draw.
    """
    accepted, rejected, thresholds = _count_errors(scores, labels, positive_label)
    negatives, positives = int(accepted[0]), int(rejected[-1])
    # difference of the rates times positives * negatives: integers, so the crossing is found exactly
    difference = rejected * negatives - accepted * positives
    after = int(np.searchsorted(difference, 0, side="right"))
    before = after - 1
    low, high = int(-difference[before]), int(difference[after])
    rate = (int(rejected[before]) * high + int(rejected[after]) * low) / (positives * (low + high))
    return rate, float(thresholds[before if low <= high else after])


@dataclass(frozen=True)
class TandemCosts:
    """Priors and costs of the t-DCF; the defaults are those of ASVspoof 2019 (Kinnunen et al. 2020)."""

    prior_spoof: float = 0.05
    prior_target: float = 0.95 * 0.99
    prior_nontarget: float = 0.95 * 0.01
    cost_miss: float = 1.0
    cost_false_alarm: float = 10.0
    cost_false_alarm_spoof: float = 10.0


def min_tdcf(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    asv_miss: float,
    asv_false_alarm: float,
    asv_false_alarm_spoof: float,
    positive_label: int = 0,
    costs: TandemCosts | None = None,
) -> float:
    """Smallest normalised tandem detection cost of a countermeasure in front of a speaker verifier (ASV).

    Source: Kinnunen et al. (2020), "Tandem assessment of spoofing countermeasures and automatic speaker verification:
    fundamentals", IEEE/ACM TASLP 28, the ASV-constrained form: C0 + C1 * FRR + C2 * FAR over C0 + min(C1, C2), the
    cost of the better of accepting all and rejecting all. Not the form of the 2019 challenge's own ranking, which had
    no C0.

    Args:
        asv_miss, asv_false_alarm, asv_false_alarm_spoof: rates at which the ASV at its fixed threshold rejects
            targets, accepts non-targets, and accepts spoofed trials; take them from the ASV scores that belong to the
            corpus.
        costs: priors and costs; those of ASVspoof 2019 by default.

    Raises:
        ValueError: as `detection_error_tradeoff`; a rate outside 0 to 1; an ASV so poor (C1 < 0) or so immune to
            spoofing (C2 = 0) that the cost of the countermeasure means nothing.
    """
    rates = {"asv_miss": asv_miss, "asv_false_alarm": asv_false_alarm, "asv_false_alarm_spoof": asv_false_alarm_spoof}
    for name, rate in rates.items():
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"{name} must be a rate between 0 and 1, got {rate}.")
    costs = costs or TandemCosts()
    far, frr, _ = detection_error_tradeoff(scores, labels, positive_label)
    reject_all = costs.prior_target * costs.cost_miss
    c0 = reject_all * asv_miss + costs.prior_nontarget * costs.cost_false_alarm * asv_false_alarm
    c1 = reject_all - c0
    c2 = costs.prior_spoof * costs.cost_false_alarm_spoof * asv_false_alarm_spoof
    if c1 <= 0.0 or c2 <= 0.0:
        raise ValueError(
            f"the t-DCF needs C1 > 0 and C2 > 0, got C1={c1:.4g}, C2={c2:.4g} from {rates}; the ASV must do better "
            "than rejecting everyone, and accept some spoofed trials."
        )
    return float((c0 + c1 * frr + c2 * far).min() / (c0 + min(c1, c2)))


class EqualErrorRate(evaluate.Metric):
    """`equal_error_rate` as an `evaluate.Metric`; needs neither network nor Hub.

    `EqualErrorRate().compute(predictions=scores, references=labels)` gives {"eer": ..., "eer_threshold": ...}.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, positive_label: int = 0) -> dict[str, float]:
        eer, threshold = equal_error_rate(predictions, references, positive_label)
        return {"eer": eer, "eer_threshold": threshold}


def _count_errors(
    scores: ArrayLike, labels: ArrayLike, positive_label: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Negatives accepted and positives rejected [K + 1] at each of the K distinct scores and at infinity."""
    values, classes = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != classes.shape:
        raise ValueError(
            f"scores and labels must be one number per trial, got shapes {values.shape} and {classes.shape}; "
            "from logits [n, 2] take logits[:, 0] - logits[:, 1]."
        )
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values))
        raise ValueError(
            f"scores must be finite, got {values[bad[0]]} at trial {bad[0]} ({bad.size} such); did training diverge?"
        )
    is_positive = classes == positive_label
    positives = int(is_positive.sum())
    if positives in (0, values.size):
        raise ValueError(
            f"labels must hold trials of both classes, got {positives} of positive_label={positive_label} and "
            f"{values.size - positives} others; evaluate on data with bona fide and spoofed trials."
        )
    thresholds, group = np.unique(values, return_inverse=True)
    positive_at = np.bincount(group[is_positive], minlength=thresholds.size)
    negative_at = np.bincount(group[~is_positive], minlength=thresholds.size)
    rejected = np.concatenate([[0], np.cumsum(positive_at)])
    accepted = values.size - positives - np.concatenate([[0], np.cumsum(negative_at)])
    return accepted, rejected, np.append(thresholds, np.inf)
