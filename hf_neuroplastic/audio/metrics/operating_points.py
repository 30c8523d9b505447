"""What all metrics of detection share: trials, and the errors at every threshold.

Scores are "the higher, the more bona fide": a trial is accepted if its score >= threshold. False acceptance rate (FAR): share
of spoofed trials accepted. False rejection rate (FRR): share of bona fide trials rejected. From a classifier's logits [B, 2] in
label order (bonafide, spoof) take `logits[:, 0] - logits[:, 1]`.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
ARGUMENTS = """
Args:
    predictions: scores, one per trial, the higher the more like `positive_label`.
    references: integer labels, one per trial.
    positive_label: the label to accept (default 0, bona fide); every other label is to be rejected.
"""


def trials(scores: ArrayLike, labels: ArrayLike, positive_label: int = 0) -> tuple[Array, NDArray[np.bool_]]:
    """Scores [n], and which trials [n] are of the positive label.

    Raises:
        ValueError: other shapes, unequal lengths, NaN or infinite scores, or no trial of one of the two classes.
    """
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
    return values, is_positive


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
        ValueError: as `trials`.
    """
    values, is_positive = trials(scores, labels, positive_label)
    thresholds, group = np.unique(values, return_inverse=True)
    positive_at = np.bincount(group[is_positive], minlength=thresholds.size)
    negative_at = np.bincount(group[~is_positive], minlength=thresholds.size)
    return *error_rates(positive_at, negative_at), np.append(thresholds, np.inf)


def error_rates(positive_at: NDArray[np.int64], negative_at: NDArray[np.int64]) -> tuple[Array, Array]:
    """FAR and FRR [K + 1] from the positive and the negative trials [K] at each of the ascending scores."""
    rejected, refused = (np.concatenate([[0], np.cumsum(counts)]) for counts in (positive_at, negative_at))
    return (refused[-1] - refused) / refused[-1], rejected / rejected[-1]


class DetectionMetric(evaluate.Metric):
    """What the metrics here have in common: `description`, and a number per trial as input. Needs neither network nor Hub."""

    description = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=ARGUMENTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )
