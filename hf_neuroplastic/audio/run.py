"""The outcome of a fine-tuning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .evaluation import Scores


@dataclass(frozen=True)
class Run:
    """The outcome of one run.

    dev_eer: of the weights that were kept, chosen on dev; best_step: where they come from, None for the mean of the best ones
    (then `averaged` counts them). history: training loss, learning rate and dev EER by step. health: a row per logged step:
    the keys of DropIn.report and "step"; empty without DropIn. plasticity: a row per logged step: "step", NeuroPlastic's
    "alpha_rms", and "weak", the share of weak neurons by layer, as far as there are any. counts: training utterances (bona
    fide, spoofed), as drawn in an epoch. class_weights: of the loss, (bona fide, spoof). learned: elements
    of the weights that learn. evaluation: scores of unseen data, if there were any.
    """

    name: str
    seconds: float
    steps: int
    train_loss: float
    neurons_replaced: int
    dev_eer: float | None
    best_step: int | None
    averaged: int
    counts: tuple[int, ...]
    class_weights: tuple[float, float]
    interrupted: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)
    plasticity: list[dict[str, Any]] = field(default_factory=list)
    learned: int = 0
    evaluation: Scores | None = None

    @property
    def eer(self) -> float | None:
        """The EER of the evaluation, 0 to 1."""
        return None if self.evaluation is None else self.evaluation.eer

    def summary(self) -> dict[str, Any]:
        """What results.json holds of a run."""
        left_out = ("evaluation", "seconds")
        known = {name: value for name, value in self.__dict__.items() if name not in left_out}
        trials = None if self.evaluation is None else len(self.evaluation.labels)
        return {**known, "seconds": round(self.seconds, 2), "eer": self.eer, "trials": trials}
