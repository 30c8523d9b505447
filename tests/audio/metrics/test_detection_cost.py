"""Detection costs against exhaustive minima and hand-computed cases."""

import re

import numpy as np
import pytest
from trials import exact_points, trials

from hf_neuroplastic.audio.metrics import DetectionCost, DetectionCosts, act_dcf, min_dcf


def test_defaults_are_those_of_asvspoof5():
    costs = DetectionCosts()
    assert costs.beta == pytest.approx(1.9)
    assert costs.threshold == pytest.approx(-np.log(1.9))


@pytest.mark.parametrize("costs", [DetectionCosts(), DetectionCosts(0.5, 1.0, 1.0), DetectionCosts(0.9, 1.0, 3.0)])
@pytest.mark.parametrize("distinct", [1, 5, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_smallest_cost_of_all_thresholds(seed, distinct, costs):
    scores, labels = trials(seed, distinct)
    miss, false_alarm = costs.cost_miss * (1 - costs.prior_spoof), costs.cost_false_alarm * costs.prior_spoof
    expected = min(miss * float(frr) + false_alarm * float(far) for far, frr in exact_points(scores, labels))
    found, threshold = min_dcf(scores, labels, costs=costs)
    assert found == pytest.approx(expected / min(miss, false_alarm), rel=1e-12)
    assert found <= 1.0
    shifted = scores - threshold + costs.threshold if np.isfinite(threshold) else scores - 1e6
    assert act_dcf(shifted, labels, costs=costs) == pytest.approx(found, rel=1e-9)
    assert act_dcf(scores, labels, costs=costs) >= found - 1e-12
    assert min_dcf(np.exp(scores), labels, costs=costs)[0] == found


def test_actual_cost_of_known_cases():
    # -ln 1.9 = -.642: one of two bona fide trials is rejected, one of four spoofed ones accepted
    assert act_dcf([-0.65, -0.64, -0.7, -3.0, -0.6, -2.0], [0, 0, 1, 1, 1, 1]) == pytest.approx(1.9 / 2 + 1 / 4)
    assert act_dcf([5.0, -5.0], [0, 1]) == 0.0
    assert act_dcf([-5.0, 5.0], [0, 1]) == pytest.approx(2.9)
    assert act_dcf([0.0, 0.0], [0, 1]) == 1.0


def test_metric():
    scores, labels = trials(0, distinct=10)
    smallest, threshold = min_dcf(scores, labels)
    found = DetectionCost().compute(predictions=scores, references=labels)
    assert found == {"min_dcf": smallest, "min_dcf_threshold": threshold, "act_dcf": act_dcf(scores, labels)}
    other = DetectionCost().compute(predictions=scores, references=labels, prior_spoof=0.5)
    assert other["min_dcf"] == min_dcf(scores, labels, costs=DetectionCosts(prior_spoof=0.5))[0]


@pytest.mark.parametrize(
    "change", [{"prior_spoof": 0}, {"prior_spoof": 1}, {"cost_miss": 0}, {"cost_false_alarm": np.nan}]
)
def test_costs_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match="prior_spoof must lie between 0 and 1, and costs be positive"):
        DetectionCosts(**change)


@pytest.mark.parametrize("metric", [min_dcf, act_dcf])
def test_bad_trials_are_refused(metric):
    for scores, labels, words in [
        ([0.1, np.inf], [0, 1], "finite, got inf at trial 1"),
        ([0.1, 0.2], [1, 1], "both classes"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            metric(scores, labels)
