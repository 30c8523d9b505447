"""hf-neuroplastic evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import bars, console, one_line_errors, quiet

SCORES, RESULTS, PICTURE = "scores.csv", "evaluation.json", "evaluation.png"


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a detector, such as the model/ that train leaves.")],
    data: Annotated[str, typer.Option(help="Folder of the corpus.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    format: Annotated[str, typer.Option(help="Layout of the corpus: asvspoof2019 or folder.")] = "asvspoof2019",
    access: Annotated[str, typer.Option(help="Part of ASVspoof 2019: LA or PA.")] = "LA",
    split: Annotated[str, typer.Option(help="train, dev or eval.")] = "eval",
    full: Annotated[bool, typer.Option("--full", help="Score whole recordings, not windows.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that check and load audio.")] = 0,
    on_error: Annotated[str, typer.Option(help="Corrupt or empty audio files: raise or skip.")] = "raise",
) -> None:
    """Score a split of a corpus: tables, a score file, a picture; and choose the threshold that predict uses."""
    with one_line_errors():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} is not empty; choose another --output")
        from dataclasses import replace

        from ..audio.detector import load_detector
        from ..audio.detector_file import read_detector, write_detector
        from ..audio.evaluation import score, table_of, write_results, write_scores
        from ..audio.figures import draw_scores
        from .corpus import load_splits
        from .tables import percent, print_table

        quiet()
        network, extractor = load_detector(model)
        detector = read_detector(Path(model))
        settings = {"data": data, "format": format, "access": access, "on_error": on_error}
        with bars() as report:
            rows = load_splits(settings, (split,), workers, report)[split]
            scores = score(
                network,
                extractor,
                rows,
                detector.seconds,
                full=full,
                batch_size=batch_size,
                workers=workers,
                progress=lambda done, total: report("scoring", done, total),
            )
        table, threshold = table_of(scores), scores.threshold - detector.log_prior_odds
        output.mkdir(parents=True, exist_ok=True)
        write_scores(output / SCORES, scores, detector.log_prior_odds)
        write_results(output / RESULTS, {"model": model, "split": split, "full": full, **settings}, table, threshold)
        draw_scores(scores, output / PICTURE)
        if Path(model).is_dir():
            write_detector(Path(model), replace(detector, threshold=threshold))
    print_table(
        f"{split} of {data}",
        [
            {"trials of": row["name"], "bona fide": str(row["bonafide"]), "spoof": str(row["spoof"]),
             "EER (%)": percent(row["eer"])}
            for row in table
        ],
    )  # fmt: skip
    place = f"beside {model}" if Path(model).is_dir() else "nowhere: the model is not a folder"
    console.print(f"threshold on the log-likelihood ratio: {threshold:.4f}, saved {escape(place)}")
    console.print(f"[dim]{SCORES}, {RESULTS} and {PICTURE} are in[/] {escape(str(output))}")
