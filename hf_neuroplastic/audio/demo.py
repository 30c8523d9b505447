"""The main job in small: write a corpus, fine-tune a small model on it three ways, choose a detector, score fresh recordings.

Everything is made here: real FLAC files in ASVspoof 2019 layout, and a small AST with random weights that is saved and loaded
like any other. The detector learns to tell attacks that it has heard, and fails on one that it has not. It says nothing about
real forgeries or pretrained models.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    set_seed,
)

from ..neurons.config import DropInConfig
from . import load_asvspoof2019, write_corpus
from .corpora.joined import known_attacks
from .detector import label_settings
from .detector_file import write_detector
from .evaluation import Scores, score
from .figures import draw_runs
from .prediction import Prediction, files_of, predictions
from .recipe import Recipe
from .results import figures_of, results_of, table_of, write_json
from .run import Run
from .synthetic.corpus import write_recordings
from .training import detector_file_of, fine_tune

METHODS = ("adamw", "neuroplastic", "neuroplastic+dropin")
RESULTS, PICTURE, MODEL, CORPUS, RECORDINGS = "results.json", "demo.png", "model", "corpus", "recordings"
OWN_FILES = {RESULTS, PICTURE, MODEL, CORPUS, RECORDINGS}
Report = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Scale:
    """How large the demonstration is."""

    utterances: dict[str, int]
    recipe: Recipe


class Demonstration(NamedTuple):
    """The outcome: a run for each method; the one with the lowest dev EER, whose weights are the detector; the detector's
    figures and table on eval (see `figures_of` and `table_of`), and what it says of fresh recordings."""

    runs: list[Run]
    chosen: Run
    figures: dict[str, float]
    table: list[dict[str, Any]]
    predictions: list[Prediction]


def scale(quick: bool, seed: int) -> Scale:
    """The sizes that keep the demonstration under 3 minutes on two cores, or under one minute if `quick`."""
    steps = 150 if quick else 500
    recipe = Recipe(
        steps=steps,
        batch_size=16,
        learning_rate=2e-3,
        seconds=1.2,
        eval_every=steps // 5,
        seed=seed,
        dropin=DropInConfig(interval=25, start=50, maturity=50, threshold=0.3, max_fraction=0.02, statistics_decay=0.9),
    )
    utterances = {"train": 480, "dev": 120, "eval": 160} if quick else {"train": 1920, "dev": 240, "eval": 240}
    return Scale(utterances, recipe)


def save_small_model(folder: Path, seed: int) -> None:
    """Saves a small AST with random weights, and its feature extractor, as `from_pretrained` wants them."""
    set_seed(seed)
    config = ASTConfig(
        num_mel_bins=64,
        max_length=128,
        patch_size=16,
        frequency_stride=16,
        time_stride=8,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        initializer_range=0.06,  # with transformers' default of .02 models this small often do not start to learn
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **label_settings(),
    )
    ASTForAudioClassification(config).save_pretrained(folder)
    # The corpus's log-mel features have mean -4.9 and standard deviation 3.8; the extractor divides by twice its std.
    ASTFeatureExtractor(num_mel_bins=64, max_length=128, mean=-4.9, std=1.9).save_pretrained(folder)


def run_demo(
    output: str | os.PathLike[str], *, quick: bool = False, seed: int = 0, report: Report | None = None
) -> Demonstration:
    """Runs the demonstration and leaves its results in `output`: results.json, demo.png, model/, corpus/ and recordings/.

    Everything is made in a scratch folder beside `output` and moved there at the end: a run that fails leaves nothing.

    Args:
        output: a folder that does not exist, is empty, or holds an earlier demonstration, which is replaced.
        quick: a minute instead of three.
        seed: of corpus, weights and training.
        report: called as report(stage, done, total) while it works.

    Raises:
        FileExistsError: `output` holds something else.
    """
    output = Path(output).resolve()
    check_output(output)
    size = scale(quick, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        draft = Path(scratch) / "new"
        draft.mkdir()
        found = _run_all(draft, size, seed, report)
        plain = {"utterances": size.utterances, "recipe": size.recipe.to_dict()}
        content = results_of(found.runs, {"quick": quick, "seed": seed, **plain})
        content["detector"] = {"method": found.chosen.name, "figures": found.figures, "table": found.table}
        write_json(draft / RESULTS, content)
        draw_runs(found.runs, draft / PICTURE)
        if output.exists():
            output.rename(Path(scratch) / "old")
        draft.rename(output)
    moved = [{**each, "file": str(output / Path(each["file"]).relative_to(draft))} for each in found.predictions]
    return found._replace(predictions=moved)


def check_output(output: Path) -> None:
    """Raises FileExistsError unless `output` may be made or replaced: absent, empty, or an earlier demonstration only."""
    if not output.exists():
        return
    held = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    if held and not (RESULTS in held and held <= OWN_FILES):
        raise FileExistsError(f"{output} holds other files, such as {sorted(held)[0]}; choose another --output")


def _run_all(folder: Path, size: Scale, seed: int, report: Report | None) -> Demonstration:
    def stage(name: str) -> Callable[[int, int], object] | None:
        return None if report is None else lambda done, total: report(name, done, total)

    write_corpus(folder / CORPUS, seed=seed, utterances=size.utterances, progress=stage("writing the corpus"))
    train, dev, evaluation = (load_asvspoof2019(folder / CORPUS, "LA", split) for split in ("train", "dev", "eval"))
    start = folder / "start"
    save_small_model(start, seed)
    extractor = AutoFeatureExtractor.from_pretrained(start)
    found = []
    for method in METHODS:
        model = AutoModelForAudioClassification.from_pretrained(start)
        recipe = replace(size.recipe, method=method)
        model, run = fine_tune(model, extractor, train, dev, recipe, progress=stage(method))
        found.append((model, replace(run, evaluation=score(model, extractor, evaluation, recipe.seconds))))
    shutil.rmtree(start)
    model, chosen = min(found, key=lambda pair: cast(float, pair[1].dev_eer))
    unseen = cast(Scores, chosen.evaluation)
    detector = detector_file_of(chosen, size.recipe, train, score(model, extractor, dev, size.recipe.seconds))
    model.save_pretrained(folder / MODEL)
    extractor.save_pretrained(folder / MODEL)
    write_detector(folder / MODEL, detector)
    _check_stock_loading(model, folder / MODEL)
    files = files_of([write_recordings(folder / RECORDINGS, seed=seed)])
    answers = list(predictions(model, extractor, files, detector, detector.threshold, []))
    figures = figures_of(unseen, detector.log_prior_odds)
    return Demonstration(
        [run for _, run in found], chosen, figures, table_of(unseen, known_attacks(detector.attacks, "")), answers
    )


def _check_stock_loading(model: Any, folder: Path) -> None:
    """A fine-tuned model must be a plain Hugging Face model; a demonstration that breaks this promise should fail."""
    stock, info = AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
    stray = {key: found for key, found in info.items() if found}
    if stray or any(not torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True)):
        raise RuntimeError(f"the saved model does not load as it was saved: {stray or 'weights differ'}")
