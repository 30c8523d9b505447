"""min t-DCF against exhaustive forms, and the organisers' files of ASV scores."""

import re

import numpy as np
import pytest
from trials import exact_points, trials

from hf_neuroplastic.audio.metrics import (
    AsvErrors,
    AsvScores,
    TandemCosts,
    TandemDetectionCost,
    asv_errors,
    min_tdcf,
    read_asv_scores,
)

ASV = AsvErrors(0.05, 0.03, 0.4)


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
    assert min_tdcf(scores, labels, ASV) == pytest.approx(expected, rel=1e-12)
    assert expected <= 1.0


def test_min_tdcf_of_extremes():
    floor = 0.9405 * 0.05 + 0.0095 * 10 * 0.03
    assert min_tdcf([1.0, 0.0], [0, 1], ASV) == pytest.approx(floor / (floor + 0.05 * 10 * 0.4), rel=1e-12)
    assert min_tdcf([1.0, 1.0], [0, 1], ASV) == pytest.approx(1.0, rel=1e-12)
    no_spoof_cost = TandemCosts(cost_false_alarm_spoof=1e-9)
    assert min_tdcf([0.0, 1.0], [0, 1], ASV, costs=no_spoof_cost) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_form_of_2019_has_no_constant(seed):
    scores, labels = trials(seed, distinct=10)
    c1 = 0.95 * 0.99 * (1 - 0.05) - 0.95 * 0.01 * 10 * 0.03
    c2 = 10 * 0.05 * (1 - 0.6)
    expected = min(c1 * float(frr) + c2 * float(far) for far, frr in exact_points(scores, labels)) / min(c1, c2)
    assert min_tdcf(scores, labels, ASV, form="2019") == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="form must be '2021' or '2019', got '2020'"):
        min_tdcf(scores, labels, ASV, form="2020")


def test_asv_errors_accept_the_highest_score_that_the_eer_rejects():
    # sorted: n n t n | t t t: 1 of 4 targets and 0 of 3 non-targets wrong at |, 1 of 4 and 1 of 3 before: the EER is there
    found = asv_errors([3.0, 5, 6, 7], [1.0, 2, 4], [0.0, 2.5, 3.0, 8])
    assert found == AsvErrors(miss=0.0, false_alarm=1 / 3, false_alarm_spoof=0.5)
    with pytest.raises(ValueError, match="spoof must hold finite scores, got 0 finite ones of 1"):
        asv_errors([1.0], [0.0], [np.nan])


def test_errors_of_an_attack_have_the_threshold_of_all_trials():
    scores = AsvScores(np.array([3.0, 5, 6, 7]), np.array([1.0, 2, 4]), np.array([0.0, 2.5, 3.0, 8]), list("aabb"))
    assert scores.errors() == asv_errors(scores.target, scores.nontarget, scores.spoof)
    assert scores.errors(["b"]) == AsvErrors(miss=0.0, false_alarm=1 / 3, false_alarm_spoof=1.0)
    assert scores.errors(["a"]).false_alarm_spoof == 0.0
    assert scores.errors(["c"]) is None


def test_metric():
    scores, labels = trials(0, distinct=10)
    found = TandemDetectionCost().compute(predictions=scores, references=labels, **vars(ASV))
    assert found == {"min_tdcf": min_tdcf(scores, labels, ASV)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"miss": 1.5}, "miss must be a rate between 0 and 1, got 1.5"),
        ({"false_alarm": float("nan")}, "false_alarm must be a rate"),
        ({"miss": 1.0}, "C1 > 0"),
        ({"false_alarm_spoof": 0.0}, "C2 > 0"),
    ],
)
def test_bad_asv_rates_are_refused(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        min_tdcf([1.0, 0.0], [0, 1], AsvErrors(**{**vars(ASV), **change}))


def test_asv_scores_of_2019_and_of_2021(tmp_path):
    old = tmp_path / "2019.txt"
    old.write_text("- target 3.5\r\n- nontarget -1\r\nA07 spoof 2\r\n- target 4\r\n")
    found = read_asv_scores(old)
    for scores, expected in zip((found.target, found.nontarget, found.spoof), ([3.5, 4], [-1], [2]), strict=True):
        np.testing.assert_array_equal(scores, expected)
    assert found.attacks == ["A07"]
    new, keys = tmp_path / "score.txt", tmp_path / "trial_metadata.txt"
    new.write_text("".join(f"LA_1 LA_E_{i} {i}.5\n" for i in range(5)))
    kinds = [("target", "eval"), ("nontarget", "eval"), ("spoof", "eval"), ("spoof", "progress"), ("target", "eval")]
    keys.write_text(
        "".join(f"LA_1 LA_E_{i} alaw ita A07 {key} notrim {phase}\n" for i, (key, phase) in enumerate(kinds))
    )
    found = read_asv_scores(new, keys)
    for scores, expected in zip((found.target, found.nontarget, found.spoof), ([0.5, 4.5], [1.5], [2.5]), strict=True):
        np.testing.assert_array_equal(scores, expected)
    assert found.attacks == ["A07"]
    with pytest.raises(ValueError, match=r"got 0 target, 0 nontarget, 1 spoof"):
        read_asv_scores(new, keys, phase="progress")
    with pytest.raises(ValueError, match=r"the scores of 2021 need keys"):
        read_asv_scores(new)
    keys.write_text(keys.read_text() * 2)
    with pytest.raises(ValueError, match=r"10 lines and .* 5; take the two files of one track"):
        read_asv_scores(new, keys)


@pytest.mark.parametrize(
    ("line", "words"),
    [("- target", "line 2: at least 3 columns"), ("- target high", "line 2: the third column must be a score")],
)
def test_malformed_asv_scores_are_named(tmp_path, line, words):
    path = tmp_path / "asv.txt"
    path.write_text(f"- target 1.0\n{line}\n")
    with pytest.raises(ValueError, match=words):
        read_asv_scores(path)
