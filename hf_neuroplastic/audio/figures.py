"""Pictures of fine-tuning runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import norm

from .corpora.rows import LABELS
from .evaluation import Scores
from .metrics import detection_error_tradeoff
from .run import Run

matplotlib.use("Agg")  # files only: a display may be missing

from matplotlib import pyplot as plt

TICKS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6])


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """A PNG with the runs' DET curves, and the neurons of those with DropIn over time."""
    figure, (det, weak, replaced) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for run in runs:
        if run.evaluation is not None:
            draw_det(det, run.evaluation, run.name)
        if run.health:
            steps = [row["step"] for row in run.health]
            weak.plot(steps, [100 * row["neuro/weak_fraction"] for row in run.health], label=run.name)
            total = [row["neuro/replaced_total"] for row in run.health]
            again = [row["neuro/replaced_total"] * row["neuro/replaced_again"] for row in run.health]
            line = replaced.plot(steps, total, label=run.name)[0]
            replaced.plot(steps, again, color=line.get_color(), linestyle="--", label="of these, new ones again")
    dress_det(det)
    weak.set(xlabel="step", ylabel="neurons (%)", title="Contribution below 10 % of the layer's mean", ylim=0)
    replaced.set(xlabel="step", ylabel="neurons", title="Replaced so far", ylim=0)
    _save(figure, (det, weak, replaced), path)


def draw_scores(scores: Scores, path: Path) -> None:
    """A PNG with the DET curve and the scores of both classes."""
    figure, (det, histogram) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    draw_det(det, scores, "all trials")
    dress_det(det)
    for label, name in enumerate(LABELS):
        histogram.hist(scores.scores[scores.labels == label], bins=40, density=True, alpha=0.6, label=name)
    histogram.axvline(scores.threshold, color="0.4", linewidth=1, linestyle="--", label="threshold")
    histogram.set(xlabel="score", ylabel="density", title="Scores, bona fide to the right")
    _save(figure, (det, histogram), path)


def draw_det(axes: Any, scores: Scores, name: str, color: str | None = None) -> None:
    """The DET curve of a detector."""
    far, frr, _ = detection_error_tradeoff(scores.scores, scores.labels)
    floor = 0.5 / len(scores.labels)  # the normal deviate of 0 and 1 is infinite
    x, y = (norm.ppf(np.clip(rate, floor, 1 - floor)) for rate in (far, frr))
    axes.step(x, y, where="post", color=color, label=f"{name}  (EER {100 * scores.eer:.1f} %)")


def dress_det(axes: Any) -> None:
    """Normal-deviate axes, and their diagonal."""
    limits = norm.ppf([TICKS[0], TICKS[-1]])
    axes.plot(limits, limits, color="0.5", linewidth=0.7, zorder=0)
    for axis, set_ticks in ((axes.xaxis, axes.set_xticks), (axes.yaxis, axes.set_yticks)):
        set_ticks(norm.ppf(TICKS), [f"{100 * tick:g}" for tick in TICKS])
        axis.grid(alpha=0.3)
    axes.set(
        xlim=limits,
        ylim=limits,
        xlabel="false acceptance of spoofed speech (%)",
        ylabel="false rejection of bona fide (%)",
        title="Detection error trade-off",
    )


def _save(figure: Any, parts: Sequence[Any], path: Path) -> None:
    for axes in parts:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
