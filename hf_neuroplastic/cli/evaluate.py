"""hf-neuroplastic evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .console import bars, console, one_line_errors, quiet

SCORES, SUBMISSION, RESULTS, PICTURE = "scores.csv", "submission.txt", "evaluation.json", "evaluation.png"


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a detector, such as the model/ that train leaves.")],
    data: Annotated[str, typer.Option(help="Folder of the corpus.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    format: Annotated[str, typer.Option(help="Layout of the corpus: asvspoof2019 or folder.")] = "asvspoof2019",
    access: Annotated[str, typer.Option(help="Part of ASVspoof 2019: LA or PA.")] = "LA",
    split: Annotated[str, typer.Option(help="train, dev or eval.")] = "eval",
    full: Annotated[bool, typer.Option("--full", help="Score whole recordings, not windows.")] = False,
    submission: Annotated[
        str | None,
        typer.Option(
            help="Form of submission.txt: asvspoof2019, asvspoof2021 or asvspoof5; default: the corpus's own, if any."
        ),
    ] = None,
    asv_scores: Annotated[
        Path | None, typer.Option(help="The organisers' file of ASV scores, for the min t-DCF.")
    ] = None,
    asv_keys: Annotated[
        Path | None, typer.Option(help="trial_metadata.txt beside the ASV scores of ASVspoof 2021.")
    ] = None,
    tdcf: Annotated[str, typer.Option(help="Form of the min t-DCF: 2021, or 2019 as that challenge ranked.")] = "2021",
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that check and load audio.")] = 0,
    on_error: Annotated[str, typer.Option(help="Corrupt or empty audio files: raise or skip.")] = "raise",
) -> None:
    """Score a split of a corpus: figures, a table by attack, score files, a picture; choose the threshold of predict."""
    with one_line_errors():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} is not empty; choose another --output")
        from dataclasses import replace

        from ..audio.detector import load_detector
        from ..audio.detector_file import read_detector, write_detector
        from ..audio.evaluation import score
        from ..audio.figures import draw_scores
        from ..audio.metrics import asv_errors, read_asv_scores
        from ..audio.results import (
            SUBMISSIONS,
            figures_of,
            table_of,
            write_json,
            write_scores,
            write_submission,
        )
        from .corpus import load_splits
        from .tables import print_evaluation

        quiet()
        form = submission or (format if format in SUBMISSIONS else None)
        if form is not None and form not in SUBMISSIONS:
            raise ValueError(f"--submission must be one of {', '.join(SUBMISSIONS)}, got {form!r}")
        if tdcf not in ("2021", "2019"):
            raise ValueError(f"--tdcf must be 2021 or 2019, got {tdcf!r}")
        asv = None if asv_scores is None else asv_errors(*read_asv_scores(asv_scores, asv_keys))
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
        threshold = scores.threshold - detector.log_prior_odds
        figures = figures_of(scores, detector.log_prior_odds, asv, tdcf)  # type: ignore[arg-type]
        table = table_of(scores, detector.attacks)
        output.mkdir(parents=True, exist_ok=True)
        write_scores(output / SCORES, scores, detector.log_prior_odds)
        if form is not None:
            write_submission(output / SUBMISSION, scores, detector.log_prior_odds, form)
        asked: dict[str, Any] = {"model": model, "split": split, "full": full, "submission": form, **settings}
        write_json(output / RESULTS, {**asked, "threshold": threshold, "figures": figures, "table": table})
        draw_scores(scores, output / PICTURE)
        if Path(model).is_dir():
            write_detector(Path(model), replace(detector, threshold=threshold))
    print_evaluation(f"{split} of {data}", figures, table)
    place = f"beside {model}" if Path(model).is_dir() else "nowhere: the model is not a folder"
    console.print(f"threshold on the log-likelihood ratio: {threshold:.4f}, saved {escape(place)}")
    written = [SCORES, *([SUBMISSION] if form else []), RESULTS, PICTURE]
    console.print(f"[dim]{', '.join(written)} are in[/] {escape(str(output))}")
