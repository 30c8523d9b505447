"""One HTML page of a stream: the arms' figures, learning and forgetting by stage, the EER of every attack after every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..figures import plt
from ..report import INK, page, section, svg, table
from .summary import FIGURES, Course, mean_matrix, table_of


def page_of(chosen: Mapping[str, Sequence[Course]], title: str) -> str:
    """The page, as HTML. chosen: courses by arm, see `chosen_courses`."""
    pictures = [_curves(chosen), _trade(table_of(chosen)), *(_matrix(arm, courses) for arm, courses in chosen.items())]
    notes = "".join(f"<li><b>{name}</b>: {meaning}</li>" for name, meaning in FIGURES.items())
    return page(
        title,
        [
            section("Arms: EER in %", table(rows_of(table_of(chosen))) + f"<ul>{notes}</ul>"),
            section("Stages", f'<div class="figures">{"".join(pictures)}</div>'),
        ],
        "EER: equal error rate. Difference: of the average to the first arm's, paired by seed, with a 95 % interval by "
        "Student's t. Made by hf-neuroplastic.",
    )


def rows_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The table in words, the arm with the lowest average first."""
    return [
        {
            "arm": row["arm"],
            "rate": f"{row['rate']:g}",
            "seeds": str(row["seeds"]),
            **{name: "" if np.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in FIGURES},
            "difference": _difference(row),
            "learns": f"{row['learned']:,.0f}",
            "s per stage": f"{row['seconds']:.1f}",
        }
        for row in sorted(rows, key=lambda row: row["average"])
    ]


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return ""
    return f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def _curves(chosen: Mapping[str, Sequence[Course]]) -> str:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, (arm, courses) in enumerate(chosen.items()):
        names, matrix = mean_matrix(courses)
        met = len(names) - len(matrix) + 1  # before the first stage
        means = [100 * np.mean(matrix[stage, : met + stage]) for stage in range(1, len(matrix))]
        axes.plot(range(1, len(matrix)), means, f"C{index % 10}", linestyle="-" if index < 10 else "--", label=arm)
    axes.set(xlabel="stage", ylabel="EER (%)", xticks=range(1, len(matrix)))
    return svg(figure, axes, "Mean EER (%) of the attacks met so far")


def _trade(rows: Sequence[Mapping[str, Any]]) -> str:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, row in enumerate(rows):
        marker = "o" if index < 10 else "s"
        axes.plot(100 * row["new"], 100 * row["forgetting"], f"C{index % 10}{marker}", label=row["arm"])
    axes.set(xlabel="EER of the new attack (%)", ylabel="forgetting (%)")
    return svg(figure, axes, "What is learnt against what is forgotten: best is low and left")


def _matrix(arm: str, courses: Sequence[Course]) -> str:
    names, matrix = mean_matrix(courses)
    figure, axes = plt.subplots(figsize=(5, 1.2 + 0.35 * len(matrix)), layout="constrained")
    image = axes.imshow(100 * matrix, vmin=0, vmax=50, cmap="viridis_r", aspect="auto")
    for (stage, attack), rate in np.ndenumerate(100 * matrix):
        axes.text(
            attack, stage, f"{rate:.0f}", ha="center", va="center", color="white" if rate > 25 else "black", fontsize=7
        )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(matrix)), ["start", *map(str, range(1, len(matrix)))], fontsize=7)
    axes.set(ylabel="after stage")
    figure.colorbar(image).ax.tick_params(colors=INK)
    return svg(figure, axes, f"EER (%) of each attack: {arm}")
