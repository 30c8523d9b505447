"""Tables on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
                "weights of step": f"mean of {run.averaged}" if run.averaged > 1 else str(run.best_step or run.steps),
                "EER (%)": percent(run.eer),
                "training time (s)": f"{run.seconds:.1f}",
                "neurons replaced": str(run.neurons_replaced),
            }
            for run in runs
        ],
    )


def print_evaluation(title: str, figures: Mapping[str, float], table: Sequence[Mapping[str, Any]]) -> None:
    """The table by attack and condition, and the figures over all trials below."""
    print_table(
        title,
        [
            {
                "trials": row["name"],
                "": row["group"] if row["group"] != row["name"] else "",
                "bona fide": str(row["bonafide"]),
                "spoof": str(row["spoof"]),
                "EER (%)": percent(row["eer"]),
                "95 %": f"{percent(row['eer_low'])} to {percent(row['eer_high'])}",
                "minDCF": f"{row['min_dcf']:.3f}",
            }
            for row in table
        ],
    )
    names = {"act_dcf": "actDCF", "cllr": "Cllr", "min_cllr": "min Cllr", "min_tdcf": "min t-DCF"}
    console.print(", ".join(f"{shown} {figures[name]:.3f}" for name, shown in names.items() if name in figures))
