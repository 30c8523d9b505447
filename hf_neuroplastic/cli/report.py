"""hf-neuroplastic report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import console, one_line_errors, quiet


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that train, evaluate or demo left.")],
    output: Annotated[Path, typer.Option(help="File for the page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Detectors of spoofed speech",
) -> None:
    """Compare runs on one page that needs nothing else: tables, learning and DET curves, attacks, neurons."""
    with one_line_errors():
        from ..audio.report import page_of, read_entries

        quiet()
        page = page_of(read_entries(folders), title)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    console.print(f"open {escape(str(output))} in a browser")
