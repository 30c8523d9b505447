"""A training run in an output folder: what `train` and `adapt` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from .console import MAIN, Report, console

RESULTS, RECIPE, MODEL = "results.json", "recipe.yaml", "model"
MAY_DIFFER = ("workers", "report_to", "on_error")  # between a run and its resumption


def require_new(output: Path, otherwise: str = "") -> None:
    """Raises FileExistsError where the folder holds something."""
    if MAIN and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty; choose another --output{otherwise}")


def is_finished(output: Path, described: dict[str, Any]) -> bool:
    """Whether the run that is to be resumed has ended, and says so.

    Raises:
        FileNotFoundError: there is no run. ValueError: the resumption asks for something else than the run.
    """
    from ..audio.recipe import read_yaml

    if not (output / RECIPE).is_file():
        raise FileNotFoundError(f"{output} holds no {RECIPE}: there is no run to resume; start without --resume")
    first = read_yaml(output / RECIPE)
    differing = [name for name, value in described.items() if name not in MAY_DIFFER and first.get(name) != value]
    if differing:
        told = "; ".join(f"{name} was {first.get(name)!r}, now {described[name]!r}" for name in differing)
        raise ValueError(f"--resume goes on with the run as it was: {told}; leave these out, or take a new --output")
    if (finished := (output / RESULTS).exists()) and MAIN:
        console.print(f"this run is finished: {escape(str(output / RESULTS))} holds what it came to")
    return finished


def fine_tuned(
    network: Any,
    extractor: Any,
    splits: dict[str, Any],
    recipe: Any,
    output: Path,
    described: dict[str, Any],
    resume: bool,
    report: Report,
) -> tuple[Any, Any]:
    """The model that training leaves, and its Run; `described` goes into the folder first. Ends the command if interrupted."""
    from ..audio.recipe import write_yaml
    from ..audio.training import fine_tune

    if MAIN:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(output / RECIPE, described)
    network, run = fine_tune(
        network,
        extractor,
        splits["train"],
        splits.get("dev"),
        recipe,
        output=output,
        resume=resume,
        log=report.log,
        progress=lambda done, total: report(recipe.method, done, total),
    )
    if run.interrupted:
        report.say(f"interrupted after step {run.steps} of {recipe.steps}; go on with --resume")
        raise typer.Exit(130)
    return network, run


def save_trained(network: Any, extractor: Any, folder: Path, base: str) -> None:
    """As `from_pretrained` and the Hub want it, with a card that names the base and this package."""
    from ..huggingface.hub import save_for_hub

    on_hub = {} if Path(base).exists() else {"base_model": base}
    save_for_hub(network, folder, processor=extractor, metadata={"pipeline_tag": "audio-classification", **on_hub})


def scored(network: Any, extractor: Any, splits: dict[str, Any], recipe: Any, report: Report, when: str = "") -> Any:
    """By name, the scores of each of the splits. when: a word for the progress bar."""
    from functools import partial

    from ..audio.evaluation import score

    found = {}
    for name, rows in splits.items():
        progress = partial(report, f"scoring {name} {when}".strip())
        how = {"batch_size": 2 * recipe.batch_size, "workers": recipe.workers, "progress": progress}
        found[name] = score(network, extractor, rows, recipe.seconds, **how)
    return found
