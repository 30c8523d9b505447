"""Fine-tuning an audio classifier to tell bona fide from spoofed speech: what the command line runs.

A method is a name: "adamw" (torch's), "neuroplastic" (the NeuroPlastic optimizer), each alone or with "+dropin"; or
"neuroplastic-8bit".
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..huggingface.callback import DropInCallback
from ..huggingface.checkpoint import last_whole_checkpoint, resume_dropin
from ..neurons.config import DropInConfig
from ..neurons.dropin import DropIn
from ..neurons.sites import find_sites
from ..optimizer.neuroplastic import NeuroPlastic
from . import LABELS, AudioCollator
from .metrics import equal_error_rate

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "neuroplastic": NeuroPlastic,
    "neuroplastic-8bit": partial(NeuroPlastic, state_bits=8),  # state that cannot be reset neuron by neuron: no DropIn
}
METHODS = ("adamw", "adamw+dropin", "neuroplastic", "neuroplastic+dropin", "neuroplastic-8bit")
WATCH_ONLY = DropInConfig(max_fraction=0.0, stop=None)

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Settings:
    """One fine-tuning run. `steps` are optimizer steps, `max_seconds` crops longer audio, `workers` load it."""

    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_seconds: float | None = 4.0
    seed: int = 0
    workers: int = 0
    dropin: DropInConfig = field(default_factory=DropInConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate <= 1:  # AdamW moves every weight by about this much per step
            raise ValueError(f"learning_rate must be above 0 and at most 1, got {self.learning_rate}")


@dataclass(frozen=True)
class Run:
    """The outcome of one method: the EER on the evaluation data, and what happened to the neurons on the way.

    scores, labels: [n] per evaluation trial, the higher the score the more bona fide. health: one row per logged step,
    with the keys of DropIn.report and "step".
    """

    name: str
    eer: float
    seconds: float
    neurons_replaced: int
    train_loss: float
    scores: np.ndarray
    labels: np.ndarray
    health: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """What results.json holds of a run."""
        return {
            "name": self.name,
            "eer": self.eer,
            "seconds": round(self.seconds, 2),
            "neurons_replaced": self.neurons_replaced,
            "train_loss": self.train_loss,
            "trials": len(self.scores),
            "health": self.health,
        }


def fine_tune(
    model: nn.Module,
    feature_extractor: Any,
    train: Dataset,
    evaluation: Dataset,
    method: str,
    settings: Settings,
    *,
    output: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Trains `model` in place by `method` through transformers.Trainer and evaluates it.

    Without DropIn in the method, neurons are watched all the same where the model has sites, so that the methods' neurons
    can be compared.

    Args:
        train, evaluation: rows with `audio` and `label` (see hf_neuroplastic.audio).
        output: folder for Trainer's checkpoints, five in a run, of which the last two are kept; None keeps none.
        resume: go on from the last whole checkpoint in `output`. `model` may be the one the run started with, or loaded from
            that checkpoint.
        progress: called as progress(step, steps).

    Raises:
        ValueError: an unknown method, data without one of the classes, or no layer that DropIn knows.
        FileNotFoundError: nothing to resume from.
    """
    _check(method, {"training": train, "evaluation": evaluation})
    checkpoint = last_whole_checkpoint(output) if resume and output else None
    if resume and checkpoint is None:
        raise FileNotFoundError(f"{output} holds no whole checkpoint to resume from; start without resuming")
    set_seed(settings.seed)
    dropin = _dropin_of(model, method, settings, checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _training_arguments(settings, output or Path(scratch), save=output is not None)
        trainer = _trainer_of(model, arguments, method, settings, dropin, progress)
        trainer.train_dataset = train
        trainer.data_collator = AudioCollator(feature_extractor, settings.max_seconds, random_crop=True)
        start = time.perf_counter()
        loss = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).training_loss
        seconds = time.perf_counter() - start
        trainer.data_collator = AudioCollator(feature_extractor, settings.max_seconds)
        prediction = trainer.predict(evaluation)  # type: ignore[arg-type]
    replaced = 0
    if dropin:
        dropin.unpatch()
        replaced = sum(int(count) for count in dropin.replaced)
    scores, labels = bona_fide_scores(prediction.predictions), np.asarray(prediction.label_ids)
    health = [entry for entry in trainer.state.log_history if "neuro/dead_fraction" in entry]
    return Run(method, equal_error_rate(scores, labels)[0], seconds, replaced, loss, scores, labels, health)


def _check(method: str, data: dict[str, Dataset]) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    for name, rows in data.items():
        if len(classes := set(rows["label"])) < len(LABELS):
            raise ValueError(
                f"the {name} data hold only {[LABELS[label] for label in classes]}; both of {LABELS} are needed"
            )


def _dropin_of(model: nn.Module, method: str, settings: Settings, checkpoint: Path | None) -> DropIn | None:
    """A DropIn that does what the method says, or only watches; None where there is nothing to watch."""
    named = method.endswith("+dropin")
    config = settings.dropin if named else WATCH_ONLY
    if not named and not find_sites(model):
        return None
    if checkpoint is not None:
        return resume_dropin(model, checkpoint, config, total_steps="trainer")
    return DropIn(model, config, total_steps="trainer")


def _trainer_of(
    model: nn.Module,
    arguments: TrainingArguments,
    method: str,
    settings: Settings,
    dropin: DropIn | None,
    progress: Progress | None,
) -> Trainer:
    optimizer = OPTIMIZERS[method.partition("+")[0]](
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    callbacks: list[TrainerCallback] = [] if progress is None else [_ReportProgress(progress)]
    if dropin is not None:
        callbacks.insert(0, DropInCallback(dropin))
    trainer = Trainer(model, arguments, optimizers=(optimizer, None), callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        if isinstance(callback, DropInCallback):
            callback.attach(trainer)
    return trainer


def bona_fide_scores(logits: Any) -> np.ndarray:
    """[n] from logits [n, 2] in label order (bonafide, spoof): the log-odds of bona fide."""
    return logits[:, 0] - logits[:, 1]


def _training_arguments(settings: Settings, folder: Path, *, save: bool) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_share * settings.steps),
        logging_steps=max(1, settings.steps // 20),
        save_strategy="steps" if save else "no",
        save_steps=-(-settings.steps // 5),
        save_total_limit=2,
        seed=settings.seed,
        remove_unused_columns=False,  # the collator reads the column `audio`
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
        log_level="error",
    )


class _ReportProgress(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps)
