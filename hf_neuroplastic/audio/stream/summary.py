"""Figures of the courses of a stream: each arm's best trial on dev, and differences to the first arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

FIGURES = {
    "average": "mean EER of the attacks met so far, over the stages",
    "new": "EER of the new attack right after its stage",
    "final": "mean EER of all attacks at the end",
    "forgetting": "how much higher the EER of an attack is at the end than right after its stage",
    "learning": "mean EER of the new attack, on dev, while it is learnt",
}
Course = Mapping[str, Any]


def figures_of(course: Course, part: str = "test") -> dict[str, float]:
    """The FIGURES of one course, EERs from 0 to 1; beside them `seconds` by stage and `learned`, elements that learn.

    The attacks of the start count as one that was met before the first stage.
    """
    matrix = np.array([list(row.values()) for row in course[part]])  # [stages + 1, attacks]
    stages = len(matrix) - 1
    met = matrix.shape[1] - stages  # 1 with a start, else 0
    after = [matrix[stage, : met + stage] for stage in range(1, stages + 1)]
    new = [matrix[stage, met + stage - 1] for stage in range(1, stages + 1)]
    first = np.array([*matrix[0, :met], *new])
    measured = [np.mean(each) for each in course["learning"] if each]
    return {
        "average": float(np.mean([np.mean(each) for each in after])),
        "new": float(np.mean(new)),
        "final": float(np.mean(matrix[-1])),
        "forgetting": float(np.mean(matrix[-1, :-1] - first[:-1])) if len(first) > 1 else 0.0,
        "learning": float(np.mean(measured)) if measured else float("nan"),
        "seconds": float(np.mean(course["seconds"])),
        "learned": float(np.mean(course["learned"])),
    }


def chosen_courses(courses: Sequence[Course]) -> dict[str, list[Course]]:
    """By arm, the courses, one for each seed, of the trial with the lowest average on dev."""
    chosen = {}
    for arm in dict.fromkeys(course["arm"] for course in courses):
        trials: dict[int, list[Course]] = {}
        for course in courses:
            if course["arm"] == arm:
                trials.setdefault(course["trial"], []).append(course)
        by_dev = {
            trial: np.mean([figures_of(each, "dev")["average"] for each in held]) for trial, held in trials.items()
        }
        chosen[arm] = sorted(trials[min(by_dev, key=lambda trial: by_dev[trial])], key=lambda course: course["seed"])
    return chosen


def table_of(chosen: Mapping[str, Sequence[Course]]) -> list[dict[str, Any]]:
    """A row for each arm: its rate, seeds, and the mean of each figure.

    Beside them `difference`, of `average` to the first arm's, paired by seed, with `low` and `high`, a 95 % interval by
    Student's t; None where fewer than two seeds have both.
    """
    reference = next(iter(chosen.values()))
    base = {course["seed"]: figures_of(course)["average"] for course in reference}
    rows = []
    for arm, courses in chosen.items():
        figures = [figures_of(course) for course in courses]
        row: dict[str, Any] = {"arm": arm, "rate": courses[0]["rate"], "seeds": len(courses)}
        row |= {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}
        pairs = [
            each["average"] - base[course["seed"]]
            for each, course in zip(figures, courses, strict=True)
            if course["seed"] in base
        ]
        row |= dict(zip(("difference", "low", "high"), interval(pairs), strict=True))
        rows.append(row)
    return rows


def interval(differences: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % interval by Student's t; None where fewer than two values leave nothing to tell."""
    if len(differences) < 2 or not np.ptp(differences):
        return None, None, None
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return mean, float(low), float(high)


def mean_matrix(courses: Sequence[Course], part: str = "test") -> tuple[list[str], np.ndarray]:
    """Names of the attacks, and [stages + 1, attacks] EER, mean over seeds."""
    names = list(courses[0][part][0])
    return names, np.mean([[[row[name] for name in names] for row in course[part]] for course in courses], axis=0)
