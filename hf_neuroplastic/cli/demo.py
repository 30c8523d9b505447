"""hf-neuroplastic demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import bars, console, one_line_errors, quiet


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of three.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("neuroplastic-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of corpus, weights and training.")] = 0,
) -> None:
    """Write a corpus, fine-tune a small model on it three ways, choose a detector, and score fresh recordings with it."""
    with one_line_errors():
        from ..audio.demo import CORPUS, MODEL, PICTURE, RECORDINGS, RESULTS, run_demo
        from .tables import print_evaluation, print_predictions, print_runs

        quiet()
        with bars() as report:
            found = run_demo(output, quick=quick, seed=seed, report=report)
    print_runs(found.runs)
    print_evaluation(f"the detector, from {found.chosen.name}, on new speakers", found.figures, found.table)
    print_predictions("what it says of three fresh recordings", found.predictions)
    place = escape(str(output))
    console.print(
        f"[dim]The files lie in[/] {place}[dim]: {RESULTS}, {PICTURE}, {MODEL}/, {CORPUS}/ and {RECORDINGS}/. Go on:[/]"
    )
    console.print(f"hf-neuroplastic predict {place}/{MODEL} YOUR_FILES", soft_wrap=True)
    command = f"hf-neuroplastic train --model {place}/{MODEL} --data {place}/{CORPUS} --seconds 1.2 --steps 100 --output again"
    console.print(command, soft_wrap=True)
