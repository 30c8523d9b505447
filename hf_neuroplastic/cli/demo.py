"""hf-neuroplastic demo."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..audio.demo import MODELS, PICTURE, RESULTS, run_demo
from .console import bars, console, one_line_errors, print_runs

DemoModel = enum.Enum("DemoModel", {name: name for name in MODELS})  # type: ignore[misc]


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of four.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("neuroplastic-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of corpus, weights and training.")] = 0,
    model: Annotated[DemoModel, typer.Option(help="Architecture of the small model.")] = DemoModel.wav2vec2,  # type: ignore[attr-defined]
) -> None:
    """Write a corpus, fine-tune a small model on it with AdamW, NeuroPlastic, and NeuroPlastic + DropIn, and compare."""
    with one_line_errors(), bars() as report:
        runs = run_demo(output, model=model.value, quick=quick, seed=seed, report=report)
    print_runs(runs)
    console.print(f"[dim]{RESULTS}, {PICTURE} and the fine-tuned model are in[/] {escape(str(output))}")
