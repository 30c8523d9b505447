"""Tables and score files of an evaluation, and what the organisers' scripts would read in them."""

import csv
import json

import numpy as np
import pytest

from hf_neuroplastic.audio.evaluation import Scores
from hf_neuroplastic.audio.metrics import AsvScores, act_dcf, cllr, equal_error_rate, min_tdcf
from hf_neuroplastic.audio.results import figures_of, table_of, write_json, write_scores, write_submission

ATTACKS = ["-", "-", "-", "A01", "A01", "A02", "A03"]
LOGITS = [[2.0, 0], [1, 0], [0, 1], [0, 2], [1.5, 0], [0, 3], [0, 0.5]]


# every non-target below every target: accepted are 2 of the 3 spoofed trials, both of A01
ASV = AsvScores(np.array([2.0, 3, 4]), np.array([0.0, 1]), np.array([2.5, 3.5, -1]), ["A01", "A01", "A02"])


def scores(conditions=("a", "b", "a", "a", "a", "c", "b")):
    labels = np.array([0 if attack == "-" else 1 for attack in ATTACKS])
    names = [f"LA_E_{index}" for index in range(len(labels))]
    return Scores(names, labels, np.array(LOGITS, dtype=float), ATTACKS, list(conditions))


def test_a_table_tells_known_from_unknown_attacks_and_conditions_apart():
    rows = {(row["group"], row["name"]): row for row in table_of(scores(), known=["A01"])}
    assert list(rows) == [
        ("all", "all"),
        ("known attacks", "known attacks"),
        ("unknown attacks", "unknown attacks"),
        ("known attack", "A01"),
        ("unknown attack", "A02"),
        ("unknown attack", "A03"),
        ("condition", "a"),
        ("condition", "b"),
    ]
    trials = {name: (row["bonafide"], row["spoof"]) for (_, name), row in rows.items()}
    assert trials["all"] == (3, 4)
    assert trials["known attacks"] == trials["A01"] == (3, 2)
    assert trials["unknown attacks"] == (3, 2)
    assert (trials["A02"], trials["a"], trials["b"]) == ((3, 1), (2, 2), (1, 1))
    assert rows["condition", "b"]["eer"] == 0.0
    values = scores().scores
    assert rows["known attack", "A01"]["eer"] == equal_error_rate(values[:5], [0, 0, 0, 1, 1])[0]
    assert all(0 <= row["eer_low"] <= row["eer"] <= row["eer_high"] <= 1 for row in rows.values())


def test_without_training_attacks_or_conditions_no_row_claims_to_know_them():
    groups = [row["group"] for row in table_of(scores(["-"] * 7))]
    assert groups == ["all", "attack", "attack", "attack"]
    assert [row["group"] for row in table_of(scores(["-"] * 7), known=["A01", "A02", "A03"])][1:] == [
        "known attack"
    ] * 3


def test_figures_judge_ratios_without_the_prior():
    found = figures_of(scores(), 0.7, ASV)
    values, labels = scores().scores, scores().labels
    assert found["act_dcf"] == act_dcf(values - 0.7, labels)
    assert found["cllr"] == cllr(values - 0.7, labels) != cllr(values, labels)
    assert found["min_tdcf"] == min_tdcf(values, labels, ASV.errors())
    assert "min_tdcf" not in figures_of(scores(), 0.7)


def test_the_tandem_cost_of_an_attack_is_against_the_verifier_on_that_attack():
    rows = {row["name"]: row["min_tdcf"] for row in table_of(scores(), ["A01"], ASV)}
    values, labels = scores().scores, scores().labels
    assert rows["all"] == min_tdcf(values, labels, ASV.errors())
    assert rows["A01"] == min_tdcf(values[:5], labels[:5], ASV.errors(["A01"]))
    assert rows["A01"] != min_tdcf(values[:5], labels[:5], ASV.errors())
    assert rows["A02"] is None  # the verifier accepts none
    assert rows["A03"] is None  # the verifier has no trials
    assert rows["a"] is None
    assert "min_tdcf" not in table_of(scores())[0]


def test_score_files(tmp_path):
    write_scores(tmp_path / "scores.csv", scores(), 0.7)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == scores().scores.tolist()
    assert [float(row["llr"]) for row in rows] == (scores().scores - 0.7).tolist()
    assert [row["condition"] for row in rows] == scores().conditions
    expected = {
        "asvspoof2019": ["LA_E_0 - bonafide 2.0", "LA_E_3 A01 spoof -2.0"],
        "asvspoof2021": ["LA_E_0 2.0", "LA_E_3 -2.0"],
        "asvspoof5": ["filename\tcm-score", "LA_E_2\t-1.7"],
    }
    for form, lines in expected.items():
        write_submission(tmp_path / form, scores(), 0.7, form)
        written = (tmp_path / form).read_text().splitlines()
        assert [written[0], written[3]] == lines
        assert len(written) == 7 + (form == "asvspoof5")
    with pytest.raises(ValueError, match="one of the forms asvspoof2019, asvspoof2021, asvspoof5; got 'dcase'"):
        write_submission(tmp_path / "other", scores(), 0.7, "dcase")


def test_json_holds_no_value_that_others_cannot_read(tmp_path):
    write_json(tmp_path / "a.json", {"eer": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"eer": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"eer": float("nan")})
