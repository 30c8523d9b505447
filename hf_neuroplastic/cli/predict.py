"""hf-neuroplastic predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Report, bars, one_line_errors, quiet


def _counted(found: Iterable[Any], total: int, report: Report) -> Iterator[Any]:
    """The same, with progress."""
    for done, row in enumerate(found, start=1):
        yield row
        report("scoring", done, total)


def predict(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a detector, such as the model/ that train leaves.")],
    paths: Annotated[list[Path], typer.Argument(help="Audio files, and folders of them.")],
    output: Annotated[Path | None, typer.Option(help="File for the answers; default: the screen.")] = None,
    format: Annotated[str, typer.Option(help="csv, or jsonl: a JSON object a line.")] = "csv",
    threshold: Annotated[
        float | None, typer.Option(help="Bona fide from this log-likelihood ratio on; default: what evaluate chose.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Score whole recordings, not windows.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 16,
) -> None:
    """Score recordings: file, score, log-likelihood ratio, label. Unreadable files are named at the end (exit code 1)."""
    with one_line_errors():
        from ..audio.detector import load_detector, read_window
        from ..audio.prediction import files_of, predictions, writer

        quiet()
        files = files_of(paths)
        write = writer(format)
        network, extractor = load_detector(model)
        detector = read_window(Path(model), extractor)
        limit = threshold if threshold is not None else detector.threshold
        unreadable: list[str] = []
        found = predictions(network, extractor, files, detector, limit, unreadable, full=full, batch_size=batch_size)
        if output is None:
            write(typer.get_text_stream("stdout"), found)
        else:
            with output.open("w", newline="", encoding="utf-8") as file, bars() as report:
                write(file, _counted(found, len(files), report))
        if limit is None:
            typer.echo(
                "no label: evaluate has not chosen a threshold for this model; run it, or give --threshold", err=True
            )
        for line in unreadable:
            typer.echo(f"not scored: {line}", err=True)
        if unreadable:
            raise typer.Exit(1)
