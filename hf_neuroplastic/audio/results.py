"""What an evaluation leaves: figures, a table by attack and condition, score files."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .corpora.rows import LABELS
from .evaluation import Scores
from .metrics import (
    AsvScores,
    act_dcf,
    cllr,
    equal_error_rate,
    equal_error_rate_interval,
    min_cllr,
    min_dcf,
    min_tdcf,
)
from .run import Run

SUBMISSIONS = ("asvspoof2019", "asvspoof2021", "asvspoof5")
Chosen = NDArray[np.bool_]


def figures_of(
    scores: Scores, log_prior_odds: float, asv: AsvScores | None = None, form: Literal["2021", "2019"] = "2021"
) -> dict[str, float]:
    """The metrics over all trials: EER with its interval (0 to 1), costs, and, with an ASV's scores, the min t-DCF.

    log_prior_odds: see `DetectorFile`; they make log-likelihood ratios of the scores, which act_dcf and cllr judge.
    """
    values, labels = scores.scores, scores.labels
    llr = values - log_prior_odds
    low, high = equal_error_rate_interval(values, labels)
    figures = {
        "eer": scores.eer,
        "eer_low": low,
        "eer_high": high,
        "min_dcf": min_dcf(values, labels)[0],
        "act_dcf": act_dcf(llr, labels),
        "cllr": cllr(llr, labels),
        "min_cllr": min_cllr(values, labels),
    }
    errors = None if asv is None else asv.errors()
    return figures if errors is None else {**figures, "min_tdcf": min_tdcf(values, labels, errors, form=form)}


def table_of(
    scores: Scores,
    known: Sequence[str] | None = None,
    asv: AsvScores | None = None,
    form: Literal["2021", "2019"] = "2021",
) -> list[dict[str, Any]]:
    """Rows of group, name, numbers of bona fide and spoofed trials, EER and its interval (0 to 1), and minDCF.

    With an ASV's scores, min t-DCF too: of an attack against the ASV's errors on that attack, None where the ASV has no such
    trials or accepts none.

    The groups are all trials; known and unknown attacks together, and each attack, against all bona fide trials; each condition
    that has trials of both classes. known: attacks of the training data; None where they are not known.
    """
    rows = []
    for group, name, chosen in _groups(scores, known):
        values, labels = scores.scores[chosen], scores.labels[chosen]
        low, high = equal_error_rate_interval(values, labels)
        rows.append(
            {
                "group": group,
                "name": name,
                "bonafide": int((labels == 0).sum()),
                "spoof": int((labels == 1).sum()),
                "eer": equal_error_rate(values, labels)[0],
                "eer_low": low,
                "eer_high": high,
                "min_dcf": min_dcf(values, labels)[0],
            }
        )
        if asv is not None:
            attacks = {attack for attack, taken in zip(scores.attacks, chosen, strict=True) if taken} - {"-"}
            errors = None if group == "condition" else asv.errors(None if group == "all" else attacks)
            fooled = (
                errors is not None and errors.false_alarm_spoof > 0
            )  # else there is nothing for the detector to save
            rows[-1]["min_tdcf"] = min_tdcf(values, labels, errors, form=form) if errors and fooled else None
    return rows


def _groups(scores: Scores, known: Sequence[str] | None) -> Iterator[tuple[str, str, Chosen]]:
    bona_fide, attacks, conditions = scores.labels == 0, np.asarray(scores.attacks), np.asarray(scores.conditions)
    yield "all", "all", np.ones(len(bona_fide), dtype=bool)
    names = sorted(set(attacks[~bona_fide]) - {"-"})
    seen = {name for name in names if known is not None and name in known}
    if seen and len(seen) < len(names):
        for group, members in (("known attacks", seen), ("unknown attacks", set(names) - seen)):
            yield group, group, bona_fide | np.isin(attacks, sorted(members))
    for name in names:
        group = "attack" if known is None else "known attack" if name in seen else "unknown attack"
        yield group, str(name), bona_fide | (attacks == name)
    if len(set(conditions)) > 1:
        for name in sorted(set(conditions)):
            chosen = conditions == name
            if len(set(scores.labels[chosen])) == len(LABELS):
                yield "condition", str(name), chosen


def write_scores(path: Path, scores: Scores, log_prior_odds: float) -> None:
    """CSV with a line per trial: file, label, attack, condition, score, llr. Numbers read back are the same."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("file", "label", "attack", "condition", "score", "llr"))
        columns = (scores.files, scores.labels, scores.attacks, scores.conditions, scores.scores)
        for name, label, attack, condition, score in zip(*columns, strict=True):
            lines.writerow(
                (name, LABELS[label], attack, condition, repr(float(score)), repr(float(score - log_prior_odds)))
            )


def read_scores(path: Path) -> Scores:
    """The scores that `write_scores` wrote.

    Raises:
        ValueError: another file, by name.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        values = np.array([float(row["score"]) for row in rows])
        labels = np.array([LABELS.index(row["label"]) for row in rows])
        columns = [[row[name] for row in rows] for name in ("file", "attack", "condition")]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is no table of scores as evaluate writes it: {error!r}") from None
    return Scores(columns[0], labels, np.stack([values, np.zeros_like(values)], 1), columns[1], columns[2])


def write_submission(path: Path, scores: Scores, log_prior_odds: float, form: str) -> None:
    """The score file that the organisers' scripts read.

    form: "asvspoof2019", lines of utterance, attack, key and score; "asvspoof2021", lines of utterance and score; "asvspoof5",
    tab-separated filename and cm-score, a log-likelihood ratio, below a line of these names.

    Raises:
        ValueError: another form.
    """
    if form not in SUBMISSIONS:
        raise ValueError(f"a score file has one of the forms {', '.join(SUBMISSIONS)}; got {form!r}")
    names = [Path(name).stem if Path(name).suffix else name for name in scores.files]
    values = [repr(float(value)) for value in scores.scores - (log_prior_odds if form == "asvspoof5" else 0.0)]
    keys = [LABELS[label] for label in scores.labels]
    lines: Iterator[Sequence[str]] = (
        zip(names, scores.attacks, keys, values, strict=True)
        if form == "asvspoof2019"
        else zip(names, values, strict=True)
    )
    separator = "\t" if form == "asvspoof5" else " "
    with path.open("w", newline="", encoding="utf-8") as file:
        if form == "asvspoof5":
            file.write("filename\tcm-score\n")
        file.writelines(f"{separator.join(line)}\n" for line in lines)


def results_of(runs: Sequence[Run], config: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json: the runs, how they came about, and the versions of what they depend on."""
    packages = ("hf-neuroplastic", "torch", "transformers", "accelerate", "datasets")
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    return {"runs": [run.summary() for run in runs], "config": config, "versions": versions}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON of plain values."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
