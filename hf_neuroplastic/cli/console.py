"""What the commands share: the screen, progress bars, errors in one line, the table of runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors import SafetensorError

from ..audio.training import Run

console = Console()


def print_runs(runs: list[Run]) -> None:
    table = Table(title="fine-tuned")
    for heading in ("method", "EER (%)", "training time (s)", "neurons replaced"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for run in runs:
        table.add_row(run.name, f"{100 * run.eer:.1f}", f"{run.seconds:.1f}", str(run.neurons_replaced))
    console.print(table)


@contextlib.contextmanager
def bars() -> Iterator[Any]:
    """report(stage, done, total): a progress bar per stage."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console) as bars:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can put right is said in one line, with exit code 2; anything else is a bug and shows its traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, TypeError, SafetensorError) as error:
        if os.environ.get("HF_NEUROPLASTIC_DEBUG"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        Console(stderr=True).print(
            f"[red]error:[/] {escape(' '.join(lines)) or type(error).__name__}", soft_wrap=True, markup=True
        )
        raise typer.Exit(2) from None
