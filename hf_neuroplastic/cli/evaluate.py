"""hf-neuroplastic evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .console import Report, bars, console, one_line_errors, quiet
from .loading import FORMATS, load_splits

if TYPE_CHECKING:
    from ..audio.detector_file import DetectorFile

SCORES, SUBMISSION, RESULTS, PICTURE = "scores.csv", "submission.txt", "evaluation.json", "evaluation.png"


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a detector, such as the model/ that train leaves.")],
    data: Annotated[
        list[str], typer.Option(help="Folder or table of the corpus; several times for a table over corpora.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    format: Annotated[str, typer.Option(help=f"Layout of the corpus: {FORMATS}.")] = "auto",
    columns: Annotated[str | None, typer.Option(help="Headings of a table, such as path=wav,label=is_fake.")] = None,
    labels: Annotated[str | None, typer.Option(help="What a table's labels mean, such as 0=bonafide,1=spoof.")] = None,
    access: Annotated[str | None, typer.Option(help="Part of ASVspoof: LA, PA or DF; default: what is there.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of Fake-or-Real, such as for-norm.")] = None,
    real: Annotated[str | None, typer.Option(help="Folder of the real speech of MLAAD or WaveFake.")] = None,
    split: Annotated[str, typer.Option(help="train, dev, eval, all; of ASVspoof 2021 also progress, hidden.")] = "eval",
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
        from ..audio import recognise
        from ..audio.detector import load_detector, read_window
        from ..audio.metrics import read_asv_scores
        from ..audio.results import SUBMISSIONS
        from .tables import print_evaluation, print_over_corpora

        quiet()
        if submission is not None and submission not in SUBMISSIONS:
            raise ValueError(f"--submission must be one of {', '.join(SUBMISSIONS)}, got {submission!r}")
        if tdcf not in ("2021", "2019"):
            raise ValueError(f"--tdcf must be 2021 or 2019, got {tdcf!r}")
        asv = None if asv_scores is None else read_asv_scores(asv_scores, asv_keys)
        network, extractor = load_detector(model)
        detector = read_window(Path(model), extractor)
        corpus_options = {
            "access": access,
            "variant": variant,
            "real": real,
            "columns": columns,
            "labels": labels,
            "on_error": on_error,
        }
        found = {}
        with bars() as report:
            for place, corpus in _places(output, data).items():
                layout = recognise(corpus) if format == "auto" else format
                asked: dict[str, Any] = {
                    "model": model,
                    "data": corpus,
                    "split": split,
                    "format": layout,
                    **corpus_options,
                }
                asked |= {"full": full, "submission": submission or (layout if layout in SUBMISSIONS else None)}
                rows = load_splits(asked, (split,), workers, report)[split]
                how = {"full": full, "batch_size": batch_size, "workers": workers}
                found[corpus] = _evaluate(network, extractor, detector, rows, place, asked, how, (asv, tdcf), report)
        for corpus, (figures, table, _) in found.items():
            print_evaluation(f"{split} of {corpus}", figures, table)
        if len(found) > 1:
            print_over_corpora({corpus: figures for corpus, (figures, _, _) in found.items()})
        _keep_threshold(model, detector, [threshold for _, _, threshold in found.values()])
    console.print(
        f"[dim]{SCORES}, {RESULTS}, {PICTURE} and, for ASVspoof, {SUBMISSION} are in[/] {escape(str(output))}"
    )


def _evaluate(
    network: Any,
    extractor: Any,
    detector: DetectorFile,
    rows: Any,
    place: Path,
    asked: dict[str, Any],
    how: dict[str, Any],
    tandem: tuple[Any, Any],
    report: Report,
) -> tuple[dict[str, float], list[dict[str, Any]], float]:
    """Figures, table and threshold of a corpus, whose files are left in the folder `place`. how: options of `score`."""
    from functools import partial

    from ..audio.corpora.joined import family_of, known_attacks
    from ..audio.evaluation import score
    from ..audio.figures import draw_scores
    from ..audio.results import figures_of, table_of, write_json, write_scores, write_submission
    from ..audio.training import require_both_classes

    require_both_classes(f"{asked['split']} of {asked['data']}", rows)
    progress = partial(report, f"scoring {asked['data']}")
    scores = score(network, extractor, rows, detector.seconds, **how, progress=progress)
    share, rate = scores.waiting / scores.seconds, len(scores.labels) / scores.seconds
    hint = "; more --workers would help" if share > 0.5 else ""
    report.say(f"{rate:.1f} recordings per second, {share:.0%} of the time waiting for audio{hint}")
    figures = figures_of(scores, detector.log_prior_odds, *tandem)
    known = known_attacks(detector.attacks, family_of(asked["data"], asked["format"]))
    table, threshold = table_of(scores, known, *tandem), scores.threshold - detector.log_prior_odds
    place.mkdir(parents=True, exist_ok=True)
    write_scores(place / SCORES, scores, detector.log_prior_odds)
    if asked["submission"] is not None:
        write_submission(place / SUBMISSION, scores, detector.log_prior_odds, asked["submission"])
    write_json(place / RESULTS, {**asked, "threshold": threshold, "figures": figures, "table": table})
    draw_scores(scores, place / PICTURE)
    return figures, table, threshold


def _places(output: Path, data: list[str]) -> dict[Path, str]:
    """A folder of results for each corpus: `output` itself for one, folders named after the corpora for several."""
    if len(data) == 1:
        return {output: data[0]}
    from ..audio.corpora.joined import corpus_names

    return {output / name: corpus for name, corpus in zip(corpus_names(data), data, strict=True)}


def _keep_threshold(model: str, detector: DetectorFile, thresholds: list[float]) -> None:
    """Saves the threshold of one corpus beside the model; of several, none is the one to keep."""
    from dataclasses import replace

    from ..audio.detector_file import write_detector

    if len(thresholds) > 1:
        kept = "none" if detector.threshold is None else f"{detector.threshold:.4f}"
        console.print(f"threshold on the log-likelihood ratio: {kept}, as before: several corpora name several")
    elif Path(model).is_dir():
        write_detector(Path(model), replace(detector, threshold=thresholds[0]))
        console.print(f"threshold on the log-likelihood ratio: {thresholds[0]:.4f}, saved beside {escape(model)}")
    else:
        console.print(f"threshold on the log-likelihood ratio: {thresholds[0]:.4f}, not saved: the model is no folder")
