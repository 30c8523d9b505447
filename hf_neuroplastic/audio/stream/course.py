"""One arm's course through the stages of a stream, and the detector that all courses start from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from ...neurons.config import DropInConfig
from ..detector import load_detector
from ..evaluation import Scores, Windows, inputs_of, score_windows, window_collator, windows_of
from ..metrics import equal_error_rate
from ..recipe import Recipe
from ..run import Run
from ..trainer import weighted_loss
from ..training import fine_tune
from .anchor import Anchor
from .parts import Parts, drawn, examples_of, speech_of, trials_of
from .settings import Arm, Stream, chosen_names

FISHER_BATCHES = 16


class Job(NamedTuple):
    """One course: which arm, which of its trials, which seed."""

    arm: int
    trial: int
    seed: int

    @property
    def name(self) -> str:
        return f"arm{self.arm:02d}-trial{self.trial}-seed{self.seed}"


def train_start(model: str, parts: Parts, stream: Stream, seed: int, folder: Path) -> None:
    """Trains the detector of the attacks in `start` with AdamW, on all their training utterances; saves model and extractor."""
    network, extractor = load_detector(model)
    if stream.start:
        spoofed = [parts.spoofed["train"][attack] for attack in stream.start]
        rows = np.concatenate([*speech_of(parts, "train", stream.start), *spoofed])
        steps, rate = stream.start_steps, stream.start_rate
        recipe = replace(
            stream.recipe, steps=steps, learning_rate=rate, seed=seed, balance="classes", freeze="features"
        )
        dev = trials_of(parts, "dev", stream.start, stream.evaluate)
        network, _ = _trained(network, extractor, parts.data.select(rows), dev, recipe)
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)


def course(start: Path, parts: Parts, stream: Stream, job: Job) -> dict[str, Any]:
    """The arm's way through all stages.

    Returns:
        Plain values: `arm`, `trial` (its learning rate and number), `seed`; `dev` and `test`, the EER (0 to 1) of each attack,
        by name, after each stage, the first before any; `learning`, by stage, the dev EER of the new attack at each
        measurement; `seconds` and `learned`, the number of elements that learn, by stage.
    """
    arm = stream.arms[job.arm]
    model, extractor = load_detector(str(start))
    told: dict[str, Any] = {
        "arm": arm.name,
        "trial": job.trial,
        "seed": job.seed,
        "rate": arm.trials[job.trial].learning_rate,
    }
    told |= {"dev": [], "test": [], "learning": [], "seconds": [], "learned": []}
    kept: list[Any] = []
    anchor = Anchor(arm.anchor, arm.strength) if arm.anchor else None
    scored = _scored(model, extractor, parts, stream)
    _measure(told, model, scored, stream)
    if anchor is not None:  # of a model that knows its attacks already nothing says what is important
        known = stream.start and examples_of(parts, stream.start, stream.examples, job.seed, 0)
        _take(anchor, model, extractor, parts.data.select(known), arm.trials[job.trial])
    if arm.replay and stream.start:
        kept.append(examples_of(parts, stream.start, arm.replay, job.seed, 0))
    for number, attacks in enumerate(stream.stages, 1):
        rows = examples_of(parts, attacks, stream.examples, job.seed, number)
        recipe = stage_recipe(arm, job.trial, 1000 * job.seed + number)
        train, dev = parts.data.select(np.concatenate([*kept, rows])), trials_of(parts, "dev", attacks, stream.evaluate)
        begun = time.perf_counter()
        model, run = _trained(model, extractor, train, dev, recipe, choose=False, penalty=anchor)
        told["seconds"].append(round(time.perf_counter() - begun, 2))
        told["learning"].append([entry["eval_eer"] for entry in run.history if "eval_eer" in entry])
        told["learned"].append(run.learned)
        if anchor is not None:
            _take(anchor, model, extractor, parts.data.select(rows), recipe)
        if arm.replay:
            few = min(arm.replay, stream.examples)  # no more than the stage was learnt from
            kept.append(examples_of(parts, attacks, few, job.seed, number))
        _measure(told, model, scored, stream)
    return told


def stage_recipe(arm: Arm, trial: int, seed: int) -> Recipe:
    """What a stage of the arm trains by."""
    recipe = replace(arm.trials[trial], seed=seed)
    if not arm.neurons:
        return recipe
    method = recipe.method.partition("+")[0] + "+dropin"
    dropin = DropInConfig.adapter(arm.neurons, seed=seed)
    return replace(recipe, method=method, dropin=dropin, freeze="base", weight_decay=0.0)


def _trained(*arguments: Any, **options: Any) -> tuple[Any, Run]:
    """What `fine_tune` returns. Raises KeyboardInterrupt where a signal ended training, of which nothing is taken then."""
    model, run = fine_tune(*arguments, **options)
    if run.interrupted:
        raise KeyboardInterrupt
    return model, run


def _scored(model: Any, extractor: Any, parts: Parts, stream: Stream) -> dict[str, tuple[Dataset, Windows]]:
    """What is scored after every stage, of the dev and the test part; read once and kept in memory."""
    scored, attacks = {}, [attack for stage in (stream.start, *stream.stages) for attack in stage]
    for part in ("dev", "test"):
        rows = trials_of(parts, part, attacks, stream.evaluate)
        size = 2 * stream.recipe.batch_size
        windows = windows_of(model, extractor, rows, stream.recipe.seconds, batch_size=size)
        scored[part] = rows, windows._replace(batches=list(windows.batches))
    return scored


def _measure(told: dict[str, Any], model: Any, scored: Mapping[str, tuple[Dataset, Windows]], stream: Stream) -> None:
    """Appends the EER of every attack of the stream, on the dev and the test part."""
    named = [*([stream.start] if stream.start else []), *stream.stages]
    for part, (rows, windows) in scored.items():
        scores, made_by = score_windows(model, rows, windows), rows[stream.by][:]
        found = (_eer(scores, made_by, attacks, stream.by == "corpus") for attacks in named)
        told[part].append(dict(zip(chosen_names(named), found, strict=True)))


def _eer(scores: Scores, made_by: Sequence[str], attacks: Sequence[str], own: bool) -> float:
    """Of these attacks together against all bona fide speech, or of corpora against their own. made_by: of each trial."""
    chosen = np.isin(list(made_by), list(attacks)) | ((scores.labels == 0) & (not own))
    return equal_error_rate(scores.scores[chosen], scores.labels[chosen])[0]


def _take(anchor: Anchor, model: Any, extractor: Any, rows: Dataset, recipe: Recipe) -> None:
    collator = window_collator(extractor, recipe.seconds, model=model)
    order = drawn(np.arange(len(rows)), FISHER_BATCHES * recipe.batch_size, recipe.seed)
    batches = [
        {**inputs_of(model, batch), "labels": batch["labels"].to(model.device)}
        for first in range(0, len(order), recipe.batch_size)
        for batch in [collator([rows[int(index)] for index in order[first : first + recipe.batch_size]])]
    ]
    model.eval()
    anchor.take(model, batches, partial(weighted_loss, torch.ones(2)))


def described(told: Mapping[str, Any]) -> str:
    return f"{told['arm']}, rate {told['rate']:g}, seed {told['seed']}"
