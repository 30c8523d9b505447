"""hf-neuroplastic demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import bars, console, one_line_errors, quiet


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of four.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("neuroplastic-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of corpus, weights and training.")] = 0,
    model: Annotated[str, typer.Option(help="Architecture of the small model: wav2vec2 or ast.")] = "wav2vec2",
) -> None:
    """Write a corpus, fine-tune a small model on it with AdamW, NeuroPlastic, and NeuroPlastic + DropIn, and compare."""
    with one_line_errors():
        from ..audio.demo import PICTURE, RESULTS, run_demo
        from .tables import print_runs

        quiet()
        with bars() as report:
            runs = run_demo(output, model=model, quick=quick, seed=seed, report=report)
    print_runs(runs)
    console.print(f"[dim]{RESULTS}, {PICTURE} and the fine-tuned model are in[/] {escape(str(output))}")
