"""Cllr: by hand, at extremes, and its smallest value under rising maps."""

import re

import numpy as np
import pytest
from trials import trials

from hf_neuroplastic.audio.metrics import LogLikelihoodRatioCost, cllr, min_cllr


def test_known_cases():
    assert cllr([0.0, 0.0, 0.0], [0, 1, 1]) == 1.0
    # odds of 3 for bona fide, of 1/3 and 1 for spoofed trials
    expected = (np.log2(1 + 1 / 3) + (np.log2(1 + 1 / 3) + np.log2(2)) / 2) / 2
    assert cllr([np.log(3), -np.log(3), 0.0], [0, 1, 1]) == pytest.approx(expected, rel=1e-14)
    assert cllr([1e4, -1e4], [0, 1]) == 0.0
    assert cllr([-1e4, 1e4], [0, 1]) == pytest.approx(1e4 / np.log(2))


@pytest.mark.parametrize("distinct", [1, 4, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_cost_is_below_every_calibration(seed, distinct):
    scores, labels = trials(seed, distinct)
    smallest = min_cllr(scores, labels)
    assert 0 <= smallest <= 1.0 + 1e-12
    for scale in (0.01, 0.5, 1.0, 3.0):
        for shift in (-1.0, 0.0, 1.0):
            assert smallest <= cllr(scale * scores + shift, labels) + 1e-12
    assert min_cllr(np.exp(scores), labels) == pytest.approx(smallest, abs=1e-12)
    assert min_cllr(np.zeros_like(scores), labels) == pytest.approx(1.0)


def test_perfect_order_costs_nothing_and_true_ratios_little_more_than_their_order():
    assert min_cllr([2.0, 3.0, 0.0, 1.0], [0, 0, 1, 1]) == 0.0
    assert min_cllr([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1]) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [4000, 8000])
    ratios = 2 * (rng.normal(size=12000) + 2.0 * (labels == 0)) - 2.0  # of two normals, 2 apart
    assert 0 < cllr(ratios, labels) - min_cllr(ratios, labels) < 0.01


def test_metric_and_refusals():
    scores, labels = trials(0, distinct=10)
    found = LogLikelihoodRatioCost().compute(predictions=scores, references=labels)
    assert found == {"cllr": cllr(scores, labels), "min_cllr": min_cllr(scores, labels)}
    for metric in (cllr, min_cllr):
        with pytest.raises(ValueError, match=re.escape("finite, got nan at trial 1")):
            metric([0.1, np.nan], [0, 1])
        with pytest.raises(ValueError, match="both classes"):
            metric([0.1, 0.2], [0, 0])
