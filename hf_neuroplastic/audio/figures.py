"""Pictures of fine-tuning runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import norm

from .metrics import detection_error_tradeoff
from .training import Run

matplotlib.use("Agg")  # files only: a display may be missing

from matplotlib import pyplot as plt

TICKS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6])


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """A PNG with the runs' DET curves (normal-deviate axes) and their neurons over time."""
    figure, (det, weak, replaced) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for run in runs:
        far, frr, _ = detection_error_tradeoff(run.scores, run.labels)
        floor = 0.5 / len(run.scores)  # the normal deviate of 0 and 1 is infinite
        x, y = (norm.ppf(np.clip(rate, floor, 1 - floor)) for rate in (far, frr))
        det.step(x, y, where="post", label=f"{run.name}  (EER {100 * run.eer:.1f} %)")
        steps = [row["step"] for row in run.health]
        weak.plot(steps, [100 * row["neuro/weak_fraction"] for row in run.health], label=run.name)
        replaced.plot(steps, [row["neuro/replaced_total"] for row in run.health], label=run.name)
    limits = norm.ppf([TICKS[0], TICKS[-1]])
    det.plot(limits, limits, color="0.8", linewidth=1, zorder=0)
    for axis, set_ticks in ((det.xaxis, det.set_xticks), (det.yaxis, det.set_yticks)):
        set_ticks(norm.ppf(TICKS), [f"{100 * tick:g}" for tick in TICKS])
        axis.grid(alpha=0.3)
    det.set(
        xlim=limits,
        ylim=limits,
        xlabel="false acceptance of spoofed speech (%)",
        ylabel="false rejection of bona fide (%)",
        title="Detection error trade-off",
    )
    weak.set(xlabel="step", ylabel="neurons (%)", title="Contribution below 10 % of the layer's mean", ylim=0)
    replaced.set(xlabel="step", ylabel="neurons", title="Replaced so far", ylim=0)
    for axes in (det, weak, replaced):
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
