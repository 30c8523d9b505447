"""EqualErrorRate, DET points and min t-DCF against exhaustive forms in exact rational arithmetic."""

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from hf_neuroplastic.audio.metrics import (
    EqualErrorRate,
    TandemCosts,
    detection_error_tradeoff,
    equal_error_rate,
    min_tdcf,
)

ASV = {"asv_miss": 0.05, "asv_false_alarm": 0.03, "asv_false_alarm_spoof": 0.4}


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


def exact_eer(scores, labels):
    points = exact_points(scores, labels)
    for (far, frr), (next_far, next_frr) in pairwise(points):
        if frr <= far and next_frr > next_far:
            weight = (far - frr) / ((far - frr) + (next_frr - next_far))
            return far + weight * (next_far - far)
    raise AssertionError("the rates never cross")


@pytest.mark.parametrize("distinct", [1, 3, 10, 10_000])
@pytest.mark.parametrize("seed", range(8))
def test_eer_equals_exact_crossing(seed, distinct):
    scores, labels = trials(seed, distinct)
    eer, threshold = equal_error_rate(scores, labels)
    assert eer == pytest.approx(float(exact_eer(scores, labels)), abs=1e-15)
    assert threshold in scores


@pytest.mark.parametrize("seed", range(4))
def test_det_points_equal_counts(seed):
    scores, labels = trials(seed, distinct=5)
    far, frr, thresholds = detection_error_tradeoff(scores, labels)
    np.testing.assert_array_equal(np.stack([far, frr], 1), np.array(exact_points(scores, labels), dtype=float))
    np.testing.assert_array_equal(thresholds, [*np.unique(scores), np.inf])
    assert (far[0], frr[0], far[-1], frr[-1]) == (1.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("distinct", [3, 10_000])
def test_eer_symmetries(seed, distinct):
    scores, labels = trials(seed, distinct)
    eer, _ = equal_error_rate(scores, labels)
    order = np.random.default_rng(seed).permutation(scores.size)
    assert equal_error_rate(scores[order], labels[order])[0] == eer
    assert equal_error_rate(np.exp(scores), labels)[0] == eer
    assert equal_error_rate(np.repeat(scores, 3), np.repeat(labels, 3))[0] == pytest.approx(eer, abs=1e-15)
    assert equal_error_rate(-scores, labels, positive_label=1)[0] == pytest.approx(eer, abs=1e-15)
    assert equal_error_rate(-scores, labels)[0] == pytest.approx(1.0 - eer, abs=1e-15)


def test_eer_of_known_cases():
    assert equal_error_rate([2.0, 3.0, 0.0, 1.0], [0, 0, 1, 1]) == (0.0, 2.0)
    assert equal_error_rate([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])[0] == 1.0
    assert equal_error_rate([7.0, 7.0, 7.0], [0, 1, 1]) == (0.5, 7.0)
    # one of four bona fide below one of four spoofed
    assert equal_error_rate([1, 5, 6, 7, 0, 0, 0, 2], [0, 0, 0, 0, 1, 1, 1, 1]) == (0.25, 2.0)


@pytest.mark.parametrize("seed", range(4))
def test_min_tdcf_equals_exhaustive_minimum(seed):
    scores, labels = trials(seed, distinct=10)
    target, nontarget, spoof = 0.95 * 0.99, 0.95 * 0.01, 0.05
    # target: missed by the ASV, or by the countermeasure first; nontarget: only what passes both; spoof: likewise
    costs = [
        target * (frr + (1 - frr) * 0.05) + nontarget * 10 * (1 - frr) * 0.03 + spoof * 10 * far * 0.4
        for far, frr in ((float(far), float(frr)) for far, frr in exact_points(scores, labels))
    ]
    expected = min(costs) / min(costs[0], costs[-1])
    assert min_tdcf(scores, labels, **ASV) == pytest.approx(expected, rel=1e-12)
    assert expected <= 1.0


def test_min_tdcf_of_extremes():
    floor = 0.9405 * 0.05 + 0.0095 * 10 * 0.03
    assert min_tdcf([1.0, 0.0], [0, 1], **ASV) == pytest.approx(floor / (floor + 0.05 * 10 * 0.4), rel=1e-12)
    assert min_tdcf([1.0, 1.0], [0, 1], **ASV) == pytest.approx(1.0, rel=1e-12)
    no_spoof_cost = TandemCosts(cost_false_alarm_spoof=1e-9)
    assert min_tdcf([0.0, 1.0], [0, 1], costs=no_spoof_cost, **ASV) == pytest.approx(1.0, rel=1e-12)


def test_metric_computes_offline_and_in_batches():
    scores, labels = trials(0, distinct=10)
    expected_eer, expected_threshold = equal_error_rate(scores, labels)
    metric = EqualErrorRate()
    assert metric.compute(predictions=scores, references=labels) == {
        "eer": expected_eer,
        "eer_threshold": expected_threshold,
    }
    metric.add_batch(predictions=scores[:20], references=labels[:20])
    metric.add_batch(predictions=scores[20:], references=labels[20:])
    assert metric.compute()["eer"] == expected_eer
    flipped = metric.compute(predictions=-scores, references=labels, positive_label=1)
    assert flipped["eer"] == pytest.approx(expected_eer, abs=1e-15)


BAD_TRIALS = {
    "no spoof": ([0.1, 0.2], [0, 0], "2 of positive_label=0 and 0 others"),
    "no bona fide": ([0.1, 0.2], [1, 1], "0 of positive_label=0"),
    "empty": ([], [], "both classes"),
    "nan": ([0.1, np.nan], [0, 1], "finite, got nan at trial 1"),
    "infinite": ([np.inf, 0.1], [0, 1], "finite, got inf at trial 0"),
    "lengths": ([0.1, 0.2, 0.3], [0, 1], "got shapes (3,) and (2,)"),
    "logits": ([[0.1, 0.2], [0.3, 0.4]], [0, 1], "logits[:, 0] - logits[:, 1]"),
}


@pytest.mark.parametrize("case", BAD_TRIALS)
@pytest.mark.parametrize("function", [equal_error_rate, detection_error_tradeoff])
def test_bad_trials_are_refused(function, case):
    scores, labels, words = BAD_TRIALS[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        function(scores, labels)


def test_metric_reports_bad_trials_and_recovers():
    metric = EqualErrorRate()
    for predictions, references, words in [
        ([0.1, 0.2], [0, 0], "both classes"),
        ([0.1, float("nan")], [0, 1], "finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            metric.compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=r"[Mm]ismatch"):
        metric.compute(predictions=[0.1, 0.2, 0.3], references=[0, 1])
    assert EqualErrorRate().compute(predictions=[1.0, 0.0], references=[0, 1])["eer"] == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"asv_miss": 1.5}, "asv_miss must be a rate between 0 and 1, got 1.5"),
        ({"asv_false_alarm": float("nan")}, "asv_false_alarm must be a rate"),
        ({"asv_miss": 1.0}, "C1 > 0"),
        ({"asv_false_alarm_spoof": 0.0}, "C2 > 0"),
    ],
)
def test_bad_asv_rates_are_refused(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        min_tdcf([1.0, 0.0], [0, 1], **{**ASV, **change})
