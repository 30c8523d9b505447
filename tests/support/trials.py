"""Trials with ties, and their errors counted trial by trial in exact arithmetic."""

from fractions import Fraction

import numpy as np


def trials(seed, distinct, count=60, shift=1.0):
    """Scores [count] with few distinct values, hence many ties, and labels 0 (bona fide) or 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    labels[:2] = 0, 1
    scores = rng.normal(0.0, 1.0, count) + shift * (labels == 0)
    return np.round(scores * distinct / 4) / distinct, labels


def exact_points(scores, labels):
    """(FAR, FRR) as fractions for every threshold, by counting trial by trial."""
    positives = [s for s, label in zip(scores, labels, strict=True) if label == 0]
    negatives = [s for s, label in zip(scores, labels, strict=True) if label != 0]
    return [
        (
            Fraction(sum(s >= threshold for s in negatives), len(negatives)),
            Fraction(sum(s < threshold for s in positives), len(positives)),
        )
        for threshold in [*sorted(set(scores)), np.inf]
    ]
