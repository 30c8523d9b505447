"""Figures of courses, by hand."""

import math

import numpy as np
import pytest

from hf_neuroplastic.audio.stream.page import page_of
from hf_neuroplastic.audio.stream.summary import chosen_courses, figures_of, interval, mean_matrix, table_of


def course(matrix, *, arm="full", trial=0, seed=0, dev=None, learning=((0.4, 0.2), (0.3,)), names=("A", "B", "C")):
    rows = [dict(zip(names, row, strict=True)) for row in matrix]
    return {
        "arm": arm,
        "trial": trial,
        "seed": seed,
        "rate": 10.0 ** -(trial + 2),
        "dev": rows if dev is None else [dict(zip(names, row, strict=True)) for row in dev],
        "test": rows,
        "learning": learning,
        "seconds": [2.0, 4.0],
        "learned": [10, 20],
    }


MATRIX = [[0.1, 0.5, 0.5], [0.2, 0.1, 0.5], [0.3, 0.2, 0.0]]  # A is the start's, then B, then C


def test_figures_of_a_course_with_a_start():
    found = figures_of(course(MATRIX))
    assert found["average"] == pytest.approx(((0.2 + 0.1) / 2 + (0.3 + 0.2 + 0.0) / 3) / 2)
    assert found["new"] == pytest.approx((0.1 + 0.0) / 2)
    assert found["final"] == pytest.approx((0.3 + 0.2 + 0.0) / 3)
    assert found["forgetting"] == pytest.approx(((0.3 - 0.1) + (0.2 - 0.1)) / 2)
    assert found["learning"] == pytest.approx((0.3 + 0.3) / 2)
    assert (found["seconds"], found["learned"]) == (3.0, 15.0)


def test_figures_of_a_course_without_a_start():
    found = figures_of(course([[0.5, 0.5], [0.1, 0.5], [0.3, 0.0]], names=("B", "C")))
    assert found["average"] == pytest.approx((0.1 + (0.3 + 0.0) / 2) / 2)
    assert found["forgetting"] == pytest.approx(0.3 - 0.1)
    assert found["new"] == pytest.approx(0.05)


def test_one_stage_forgets_nothing_and_nothing_measured_is_no_number():
    found = figures_of(course([[0.5], [0.1]], names=("B",), learning=((),)))
    assert found["forgetting"] == 0.0
    assert math.isnan(found["learning"])


def test_the_trial_is_chosen_on_dev_over_all_seeds():
    good, bad = [[0.1] * 3] * 3, [[0.4] * 3] * 3
    courses = [course(good, trial=0, seed=seed, dev=[[0.3] * 3] * 3) for seed in (1, 0)] + [
        course(bad, trial=1, seed=seed, dev=[[0.1 + 0.15 * seed] * 3] * 3) for seed in (0, 1)
    ]
    (chosen,) = chosen_courses(courses).values()
    assert [(each["trial"], each["seed"]) for each in chosen] == [(1, 0), (1, 1)]


def test_differences_are_paired_by_seed():
    def flat(rate):
        return [[rate] * 3] * 3

    chosen = {
        "full": [course(flat(rate), seed=seed) for seed, rate in enumerate((0.2, 0.4, 0.6))],
        "new": [course(flat(rate), arm="new", seed=seed) for seed, rate in enumerate((0.1, 0.3, 0.49))],
    }
    first, second = table_of(chosen)
    assert first["difference"] is None
    assert second["difference"] == pytest.approx((-0.1 - 0.1 - 0.11) / 3)
    assert second["low"] < second["difference"] < second["high"] < 0  # unpaired, the spread of seeds would hide it


def test_an_interval_needs_two_values_that_differ():
    assert interval([0.1]) == interval([]) == interval([0.2, 0.2]) == (None, None, None)
    mean, low, high = interval([0.0, 0.2])
    assert (mean, high - low) == (pytest.approx(0.1), pytest.approx(2 * 12.706 * 0.1, rel=1e-3))


def test_the_mean_matrix_is_over_seeds():
    names, matrix = mean_matrix([course(MATRIX), course([[0.0] * 3] * 3, seed=1)])
    assert names == ["A", "B", "C"]
    np.testing.assert_allclose(matrix, np.array(MATRIX) / 2)


def test_the_page_holds_every_arm_and_loads_nothing():
    page = page_of({"full": [course(MATRIX)], "<replay>": [course(MATRIX, arm="<replay>")]}, "A & B")
    assert page.count("<svg") == 4
    assert "&lt;replay&gt;" in page
    assert "<replay>" not in page
    assert "src=" not in page
    assert 'href="http' not in page
