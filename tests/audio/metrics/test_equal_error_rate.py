"""The EER against exhaustive forms in exact rational arithmetic, and against the organisers' rule."""

import re
from itertools import pairwise

import numpy as np
import pytest
from trials import exact_points, trials

from hf_neuroplastic.audio.metrics import (
    EqualErrorRate,
    detection_error_tradeoff,
    equal_error_rate,
    equal_error_rate_interval,
)


def exact_eer(scores, labels):
    points = exact_points(scores, labels)
    for (far, frr), (next_far, next_frr) in pairwise(points):
        if frr <= far and next_frr > next_far:
            weight = (far - frr) / ((far - frr) + (next_frr - next_far))
            return far + weight * (next_far - far)
    raise AssertionError("the rates never cross")


@pytest.mark.parametrize("distinct", [1, 3, 10, 10_000])
@pytest.mark.parametrize("seed", range(8))
def test_interpolated_eer_equals_exact_crossing(seed, distinct):
    scores, labels = trials(seed, distinct)
    eer, threshold = equal_error_rate(scores, labels, interpolate=True)
    assert eer == pytest.approx(float(exact_eer(scores, labels)), abs=1e-15)
    assert threshold in scores


@pytest.mark.parametrize("distinct", [1, 3, 10, 10_000])
@pytest.mark.parametrize("seed", range(8))
def test_eer_is_the_mean_of_the_rates_where_they_are_nearest(seed, distinct):
    scores, labels = trials(seed, distinct)
    points = exact_points(scores, labels)
    nearest = min(abs(far - frr) for far, frr in points)
    allowed = [float(far + frr) / 2 for far, frr in points if abs(far - frr) == nearest]
    assert min(abs(equal_error_rate(scores, labels)[0] - value) for value in allowed) < 1e-15


@pytest.mark.parametrize(("bona_fide", "spoofed"), [(1, 1), (7, 3), (100, 900), (501, 499)])
@pytest.mark.parametrize("seed", range(5))
def test_eer_without_ties_is_that_of_one_trial_after_the_other(seed, bona_fide, spoofed):
    """Each trial in turn falls below the threshold, as in the organisers' scripts."""
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=bona_fide + spoofed), np.repeat([0, 1], [bona_fide, spoofed])
    scores[labels == 0] += 1
    best, far, frr = (1.0, 0.5), spoofed, 0
    for index in np.argsort(scores):
        frr, far = frr + (labels[index] == 0), far - (labels[index] == 1)
        rates = frr / bona_fide, far / spoofed
        best = min(best, (abs(rates[0] - rates[1]), sum(rates) / 2), key=lambda pair: pair[0])
    assert equal_error_rate(scores, labels)[0] == pytest.approx(best[1], abs=1e-12)


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
    order = np.random.default_rng(seed).permutation(scores.size)
    for interpolate in (False, True):
        eer = equal_error_rate(scores, labels, interpolate=interpolate)[0]
        assert equal_error_rate(scores[order], labels[order], interpolate=interpolate)[0] == eer
        assert equal_error_rate(np.exp(scores), labels, interpolate=interpolate)[0] == eer
        tripled = equal_error_rate(np.repeat(scores, 3), np.repeat(labels, 3), interpolate=interpolate)[0]
        assert tripled == pytest.approx(eer, abs=1e-15)
    assert equal_error_rate(-scores, labels, 1, interpolate=True)[0] == pytest.approx(eer, abs=1e-15)
    assert equal_error_rate(-scores, labels, interpolate=True)[0] == pytest.approx(1.0 - eer, abs=1e-15)


def test_eer_of_known_cases():
    assert equal_error_rate([2.0, 3.0, 0.0, 1.0], [0, 0, 1, 1]) == (0.0, 2.0)
    assert equal_error_rate([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])[0] == 1.0
    assert equal_error_rate([7.0, 7.0, 7.0], [0, 1, 1]) == (0.5, 7.0)
    assert equal_error_rate([7.0, 7.0, 7.0], [0, 1, 1], interpolate=True) == (0.5, 7.0)
    # 3 of 10 bona fide, and 9 of 10 spoofed trials share a score: nothing lies between (.9, 0) and (0, .3)
    tied = [0.0, *[1.0] * 9, *[1.0] * 3, *[2.0] * 7], [1] * 10 + [0] * 10
    assert equal_error_rate(*tied)[0] == pytest.approx(0.15, abs=1e-15)
    assert equal_error_rate(*tied, interpolate=True)[0] == pytest.approx(0.225, abs=1e-15)
    # one of four bona fide below one of four spoofed
    assert equal_error_rate([1, 5, 6, 7, 0, 0, 0, 2], [0, 0, 0, 0, 1, 1, 1, 1]) == (0.25, 2.0)


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
    assert flipped["eer"] == pytest.approx(1 - metric.compute(predictions=-scores, references=labels)["eer"], abs=0.1)
    found = metric.compute(predictions=scores, references=labels, draws=50)
    assert (found["eer_low"], found["eer_high"]) == equal_error_rate_interval(scores, labels, draws=50)


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
@pytest.mark.parametrize("function", [equal_error_rate, detection_error_tradeoff, equal_error_rate_interval])
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


def gaussians(seed, count):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [count, 2 * count])
    return rng.normal(size=3 * count) + 2.0 * (labels == 0), labels  # EER: that of a normal deviate of 1, .1587


def test_interval_covers_the_true_rate_as_often_as_it_says():
    covered = sum(
        low <= 0.1587 <= high
        for low, high in (
            equal_error_rate_interval(*gaussians(seed, 100), confidence=0.8, draws=200) for seed in range(150)
        )
    )
    assert 0.7 < covered / 150 < 0.9


def test_interval_is_seeded_and_narrows_with_more_trials():
    widths = []
    for count in (50, 500, 5000):
        low, high = equal_error_rate_interval(*gaussians(0, count), draws=200)
        assert low < equal_error_rate(*gaussians(0, count))[0] < high
        assert equal_error_rate_interval(*gaussians(0, count), draws=200) == (low, high)
        assert equal_error_rate_interval(*gaussians(0, count), draws=200, seed=1) != (low, high)
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": float("nan")}, {"draws": 0}])
def test_intervals_of_nothing_are_refused(options):
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, and draws be at least 1"):
        equal_error_rate_interval([1.0, 0.0], [0, 1], **options)
