"""Tandem detection cost: a countermeasure in front of a speaker verifier (ASV).

Source: Kinnunen et al. (2020), "Tandem assessment of spoofing countermeasures and automatic speaker verification:
fundamentals", IEEE/ACM TASLP 28.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .equal_error_rate import equal_error_rate
from .operating_points import Array, DetectionMetric, detection_error_tradeoff

KEYS = ("target", "nontarget", "spoof")


@dataclass(frozen=True)
class TandemCosts:
    """Priors and costs of the t-DCF; the defaults are those of ASVspoof 2019 and 2021.

    cost_miss, cost_false_alarm: of rejecting a target and of accepting a non-target. cost_false_alarm_spoof: of accepting a
    spoofed trial.
    """

    prior_spoof: float = 0.05
    prior_target: float = 0.95 * 0.99
    prior_nontarget: float = 0.95 * 0.01
    cost_miss: float = 1.0
    cost_false_alarm: float = 10.0
    cost_false_alarm_spoof: float = 10.0


@dataclass(frozen=True)
class AsvErrors:
    """Rates, 0 to 1, at which the ASV at its threshold rejects targets, accepts non-targets, and accepts spoofed trials."""

    miss: float
    false_alarm: float
    false_alarm_spoof: float

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{name} must be a rate between 0 and 1, got {rate}.")


@dataclass(frozen=True)
class AsvScores:
    """Scores of an ASV's trials, and the attack [spoof trials] of each spoofed one."""

    target: Array
    nontarget: Array
    spoof: Array
    attacks: Sequence[str]

    def errors(self, attacks: Collection[str] | None = None) -> AsvErrors | None:
        """See `asv_errors`; of the spoofed trials with these attacks. None where there are no such trials."""
        chosen = np.ones(len(self.spoof), bool) if attacks is None else np.isin(self.attacks, sorted(attacks))
        return asv_errors(self.target, self.nontarget, self.spoof[chosen]) if chosen.any() else None


def asv_errors(target: ArrayLike, nontarget: ArrayLike, spoof: ArrayLike) -> AsvErrors:
    """Errors of an ASV at the threshold of its own EER, of targets against non-targets; scores [n] of each kind of trial.

    As in the organisers' scripts, the threshold is the highest score that is rejected at the EER, and accepted here.
    """
    target, nontarget, spoof = (np.asarray(each, dtype=np.float64) for each in (target, nontarget, spoof))
    if not spoof.size or not np.isfinite(spoof).all():
        raise ValueError(f"spoof must hold finite scores, got {np.isfinite(spoof).sum()} finite ones of {spoof.size}.")
    scores = np.concatenate([target, nontarget])
    _, threshold = equal_error_rate(scores, np.repeat([0, 1], [target.size, nontarget.size]))
    threshold = scores[scores < threshold].max(initial=scores.min() - 0.001)
    return AsvErrors(
        float((target < threshold).mean()), float((nontarget >= threshold).mean()), float((spoof >= threshold).mean())
    )


def min_tdcf(
    scores: ArrayLike,
    labels: ArrayLike,
    asv: AsvErrors,
    positive_label: int = 0,
    *,
    costs: TandemCosts | None = None,
    form: Literal["2021", "2019"] = "2021",
) -> float:
    """Smallest normalised tandem detection cost over the thresholds of the countermeasure.

    Args:
        scores, labels: of the countermeasure, as `detection_error_tradeoff`.
        asv: see `asv_errors` and `read_asv_scores`.
        costs: priors and costs; those of ASVspoof by default.
        form: "2021", C0 + C1 FRR + C2 FAR over C0 + min(C1, C2), the ASV-constrained form of the paper; "2019", the one that
            ranked the 2019 challenge, without C0.

    Raises:
        ValueError: as `detection_error_tradeoff`; another form; an ASV so poor (C1 < 0) or so immune to spoofing (C2 = 0) that
            the cost of the countermeasure means nothing.
    """
    if form not in ("2021", "2019"):
        raise ValueError(f"form must be '2021' or '2019', got {form!r}.")
    costs = costs or TandemCosts()
    far, frr, _ = detection_error_tradeoff(scores, labels, positive_label)
    reject_all = costs.prior_target * costs.cost_miss
    c0 = reject_all * asv.miss + costs.prior_nontarget * costs.cost_false_alarm * asv.false_alarm
    c1 = reject_all - c0
    c2 = costs.prior_spoof * costs.cost_false_alarm_spoof * asv.false_alarm_spoof
    if c1 <= 0.0 or c2 <= 0.0:
        raise ValueError(
            f"the t-DCF needs C1 > 0 and C2 > 0, got C1={c1:.4g}, C2={c2:.4g} from {asv}; the ASV must do better "
            "than rejecting everyone, and accept some spoofed trials."
        )
    constant = c0 if form == "2021" else 0.0
    return float((constant + c1 * frr + c2 * far).min() / (constant + min(c1, c2)))


def read_asv_scores(path: str | Path, keys: str | Path | None = None, *, phase: str = "eval") -> AsvScores:
    """Scores of an ASV, from the files of the ASVspoof organisers.

    Args:
        path: `ASVspoof2019.LA.asv.eval.gi.trl.scores.txt`, lines of source, key and score; or, with keys, the `score.txt` of
            2021, lines of speaker, utterance and score.
        keys: `trial_metadata.txt` of 2021, whose line n says attack (5th column), key (6th) and phase (8th) of line n
            of `path`.
        phase: of the trials that count, with keys.

    Raises:
        ValueError: a line of another form, by file and number; other numbers of lines; a kind of trial without scores.
    """
    lines = _lines(path, 3)
    scores = np.empty(len(lines))
    for number, fields in enumerate(lines):
        try:
            scores[number] = float(fields[2])
        except ValueError:
            raise ValueError(
                f"{path}, line {number + 1}: the third column must be a score, got {fields[2]!r}."
            ) from None
    if keys is None:
        kinds = np.array([fields[1] for fields in lines])
        attacks = np.array([fields[0] for fields in lines])
    else:
        metadata = _lines(keys, 8)
        if len(metadata) != len(lines):
            raise ValueError(
                f"{keys} has {len(metadata)} lines and {path} {len(lines)}; take the two files of one track."
            )
        kinds = np.array([fields[5] if fields[7] == phase else "" for fields in metadata])
        attacks = np.array([fields[4] for fields in metadata])
    found = tuple(scores[kinds == key] for key in KEYS)
    if not all(each.size for each in found):
        counts = ", ".join(f"{each.size} {key}" for each, key in zip(found, KEYS, strict=True))
        hint = "" if keys else "; the scores of 2021 need keys, the trial_metadata.txt beside them"
        raise ValueError(f"{path} must hold scores of {', '.join(KEYS)}, got {counts}{hint}.")
    target, nontarget, spoof = found
    return AsvScores(target, nontarget, spoof, attacks[kinds == "spoof"].tolist())


def _lines(path: str | Path, columns: int) -> list[list[str]]:
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    short = next((number for number, fields in enumerate(lines, 1) if len(fields) < columns), None)
    if short is not None:
        raise ValueError(
            f"{path}, line {short}: at least {columns} columns are needed, got {' '.join(lines[short - 1])!r}."
        )
    return lines


class TandemDetectionCost(DetectionMetric):
    """`min_tdcf` as an `evaluate.Metric`.

    `TandemDetectionCost().compute(predictions=scores, references=labels, miss=.02, false_alarm=.02, false_alarm_spoof=.4)`
    gives {"min_tdcf": ...}; the rates are those of `AsvErrors`.
    """

    description = "Smallest normalised cost of a countermeasure in front of a speaker verifier (min t-DCF)."

    def _compute(
        self,
        predictions: Any,
        references: Any,
        miss: float,
        false_alarm: float,
        false_alarm_spoof: float,
        positive_label: int = 0,
        form: Literal["2021", "2019"] = "2021",
    ) -> dict[str, float]:
        asv = AsvErrors(miss, false_alarm, false_alarm_spoof)
        return {"min_tdcf": min_tdcf(predictions, references, asv, positive_label, form=form)}
