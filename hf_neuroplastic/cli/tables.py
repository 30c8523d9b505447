"""Tables on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .console import console


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}"


def print_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Rows of equal keys, which are the headings; the first column to the left."""
    table = Table(title=title)
    for index, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def print_runs(runs: Sequence[Any]) -> None:
    print_table(
        "fine-tuned",
        [
            {
                "method": run.name,
                "dev EER (%)": percent(run.dev_eer),
                "best step": f"mean of {run.averaged}" if run.averaged > 1 else str(run.best_step or run.steps),
                "EER (%)": percent(run.eer),
                "time (s)": f"{run.seconds:.1f}",
                "replaced": str(run.neurons_replaced),
            }
            for run in runs
        ],
    )


def name_of(row: Mapping[str, Any]) -> str:
    """A row's name, with what the name alone does not tell."""
    told = {"known attack": "(known)", "unknown attack": "(unknown)", "condition": "(condition)"}.get(row["group"], "")
    return f"{row['name']} {told}".strip()


def print_evaluation(title: str, figures: Mapping[str, float], table: Sequence[Mapping[str, Any]]) -> None:
    """The table by attack and condition, and the figures over all trials below."""
    print_table(
        title,
        [
            {
                "trials": name_of(row),
                "bona fide": str(row["bonafide"]),
                "spoof": str(row["spoof"]),
                "EER (%)": percent(row["eer"]),
                "95 %": f"{percent(row['eer_low'])} to {percent(row['eer_high'])}",
                "minDCF": f"{row['min_dcf']:.3f}",
                **({"min t-DCF": _rounded(row["min_tdcf"])} if "min_tdcf" in row else {}),
            }
            for row in table
        ],
    )
    names = {"act_dcf": "actDCF", "cllr": "Cllr", "min_cllr": "min Cllr", "min_tdcf": "min t-DCF"}
    console.print(", ".join(f"{shown} {figures[name]:.3f}" for name, shown in names.items() if name in figures))


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_over_corpora(figures: Mapping[str, Mapping[str, float]]) -> None:
    """A row for each corpus, all trials together."""
    print_table(
        "over corpora",
        [
            {
                "corpus": Path(corpus).name,
                "EER (%)": percent(row["eer"]),
                "95 %": f"{percent(row['eer_low'])} to {percent(row['eer_high'])}",
                "minDCF": f"{row['min_dcf']:.3f}",
                "actDCF": f"{row['act_dcf']:.3f}",
                "Cllr": f"{row['cllr']:.3f}",
            }
            for corpus, row in figures.items()
        ],
    )


def print_predictions(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """What a detector says of files, which are named without their folder."""
    print_table(
        title, [{"file": Path(row["file"]).name, "LLR": f"{row['llr']:.2f}", "label": row["label"]} for row in rows]
    )
