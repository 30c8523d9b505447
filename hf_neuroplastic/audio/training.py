"""Fine-tuning an audio classifier to tell bona fide from spoofed speech, by a recipe: what the command line runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from ..huggingface.callback import DropInCallback
from ..huggingface.checkpoint import last_whole_checkpoint, resume_dropin
from ..huggingface.saved_keys import accept_saved_keys
from ..neurons.dropin import DropIn
from ..neurons.sites import select_sites
from ..neurons.sites.requirements import require_abilities
from ..optimizer.neuroplastic import NeuroPlastic
from .augment import augmentation
from .corpora.joined import attacks_by_family
from .corpora.rows import LABELS
from .detector_file import DetectorFile, log_prior_odds
from .evaluation import Scores, window_collator
from .recipe import BALANCED_COLUMNS, METHODS, Recipe
from .run import Run
from .selection import KeepBest, mean_of, put
from .trainable import freeze, merged, require_peft, with_lora
from .trainer import DetectorTrainer, eer_of, penalised_loss, require_data_parallel, training_arguments, weighted_loss
from .watch import Log, Watch, signals

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "neuroplastic": NeuroPlastic,
    "neuroplastic-8bit": partial(NeuroPlastic, state_bits=8),  # state that cannot be reset neuron by neuron: no DropIn
}
assert {method.partition("+")[0] for method in METHODS} == set(OPTIMIZERS)


def fine_tune(
    model: Any,
    feature_extractor: Any,
    train: Dataset,
    dev: Dataset | None,
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: bool = False,
    choose: bool = True,
    penalty: Callable[[nn.Module], torch.Tensor] | None = None,
    log: Log | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Any, Run]:
    """The model trained through transformers.Trainer, with the weights that did best on dev, and what happened.

    SIGINT and SIGTERM end training after the step under way, with a checkpoint, and the run says `interrupted`.

    Args:
        model: changed in place, but for low-rank adapters, which give another object.
        train, dev: rows with `audio` and `label` (see hf_neuroplastic.audio). Without dev the last weights are kept.
        output: folder of Trainer's checkpoints, of which the last two are kept, and of the best weights; None keeps none.
        resume: go on from the last whole checkpoint in `output`. `model` may be the one the run started with, or loaded from
            that checkpoint.
        choose: keep the weights that did best on dev; False keeps the last ones, and dev is measured only.
        penalty: called with the model at every step, and added to the loss.
        log: called with what Trainer logs, as it comes. progress: called as progress(step, steps).

    Raises:
        ValueError: data without one of the classes, or no layer that DropIn knows.
        FileNotFoundError: nothing to resume from.
    """
    for name, rows in {"train": train, **({} if dev is None else {"dev": dev})}.items():
        require_both_classes(name, rows)
    watched = recipe.method.endswith("+dropin")
    checkpoint = last_whole_checkpoint(output, side_files=watched) if resume and output else None
    if resume and checkpoint is None:
        raise FileNotFoundError(f"{output} holds no whole checkpoint to resume from; delete the folder, and start anew")
    set_seed(recipe.seed)
    train = balanced(train, recipe.balance, recipe.seed)
    counts = tuple(np.bincount(train["label"], minlength=2).tolist())
    weights = class_weights(recipe.class_weights, counts)
    freeze(model, "nothing" if recipe.lora else recipe.freeze, recipe.dropin.layers)
    model = with_lora(model, recipe.lora) if recipe.lora else model
    dropin = dropin_of(model, recipe, checkpoint)
    with tempfile.TemporaryDirectory() as scratch, signals() as stop:
        folder = output or Path(scratch)
        keep = KeepBest(folder / "best", recipe.average, recipe.patience)
        callbacks: list[TrainerCallback] = [] if dropin is None else [DropInCallback(dropin)]
        callbacks += [keep] if dev is not None and choose else []
        collator = window_collator(
            feature_extractor,
            recipe.seconds,
            model=model,
            seed=recipe.seed,
            augment=augmentation(recipe.augment) if recipe.augment else None,
        )
        watch = Watch(collator, stop, log, progress, dropin)
        callbacks += [watch]
        arguments = training_arguments(recipe, folder, save=output is not None, evaluates=dev is not None)
        loss: Callable[..., torch.Tensor] = partial(weighted_loss, torch.tensor(weights))
        if penalty is not None:
            loss = partial(penalised_loss, loss, partial(penalty, model), recipe.accumulate)
        trainer = DetectorTrainer(
            model,
            arguments,
            data_collator=collator,
            train_dataset=train,
            eval_dataset=dev,
            processing_class=feature_extractor,  # saved with every checkpoint
            callbacks=callbacks,
            optimizers=(optimizer_of(model, recipe), None),
            compute_loss_func=loss,
            compute_metrics=eer_of,
        )
        trainer.scoring_collator = window_collator(feature_extractor, recipe.seconds, model=model)
        trainer.remove_callback(PrinterCallback)
        if dropin is None:
            accept_saved_keys(model)  # else Trainer resumes AST from random weights; a DropInCallback does the same
        else:
            callbacks[0].attach(trainer)  # type: ignore[attr-defined]
        start = time.perf_counter()
        done = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - start
        replaced, learned = 0, learned_elements(model, dropin)
        if dropin:
            dropin.unpatch()
            replaced = sum(int(count) for count in dropin.replaced)
        trainer.accelerator.wait_for_everyone()  # the first process writes the best weights, all read them
        dev_eer, best_step, averaged = (None, None, 1) if dev is None else take_best(trainer, model, dev, keep)
    logged = trainer.state.log_history
    return merged(model), Run(
        recipe.method,
        seconds,
        trainer.state.global_step,
        done.training_loss,
        replaced,
        dev_eer,
        best_step,
        averaged,
        counts,
        weights,
        bool(stop),
        [entry for entry in logged if "loss" in entry or "eval_eer" in entry],
        [entry for entry in logged if "neuro/dead_fraction" in entry],
        watch.plasticity,
        learned,
    )


def require_trainable(model: nn.Module, recipe: Recipe) -> None:
    """Raises, before any audio is read, what `fine_tune` would raise of the model: it stays as it is."""
    require_data_parallel()
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        freeze(model, "nothing" if recipe.lora else recipe.freeze, recipe.dropin.layers)
        if recipe.lora:
            require_peft()
        elif recipe.method.endswith("+dropin"):
            require_abilities(select_sites(model, recipe.dropin.layers, recipe.dropin.recurrent), recipe.dropin)
    finally:
        for parameter, before in learns:
            parameter.requires_grad_(before)


def detector_file_of(run: Run, recipe: Recipe, train: Dataset, dev: Scores | None) -> DetectorFile:
    """What stands beside the weights of a run: window, prior and attacks of the training data, the threshold of dev's EER."""
    odds = log_prior_odds(run.counts, run.class_weights)
    attacks = attacks_by_family(train)
    return DetectorFile(recipe.seconds, odds, None if dev is None else dev.threshold - odds, attacks or None)


def require_both_classes(name: str, rows: Dataset) -> None:
    """Raises ValueError where the rows of a split are of one class only."""
    if len(classes := set(rows["label"])) < len(LABELS):
        held = [LABELS[label] for label in classes]
        raise ValueError(f"the {name} data hold only {held}; both of {LABELS} are needed")


def balanced(rows: Dataset, balance: str, seed: int) -> Dataset:
    """The rows, repeated until corpora, classes within a corpus, and attacks within a class weigh alike; see `Recipe.balance`.

    Raises:
        ValueError: corpora or attacks are to weigh alike and the rows do not tell them, or tell only one.
    """
    asked = balance.split(",") if balance else []
    keys = [column for name, column in BALANCED_COLUMNS.items() if name in asked]
    for column in keys:
        if column not in rows.column_names or len(set(rows[column][:])) < 2:
            raise ValueError(
                f"balance={balance!r} needs rows of two values of {column!r}; the training data have fewer"
            )
    if not keys:
        return rows
    shares = [(np.arange(len(rows)), 1.0)]
    for column in keys:
        values = np.asarray(rows[column][:])
        shares = [
            (group[values[group] == value], share / len(present))
            for group, share in shares
            for present in [np.unique(values[group])]
            for value in present
        ]
    total = max(len(group) / share for group, share in shares)  # at which no row is left out
    rng, drawn = np.random.default_rng(seed), list[NDArray[np.int64]]()
    for group, share in shares:
        times, rest = divmod(round(total * share), len(group))
        drawn += [np.tile(group, times), rng.permutation(group)[:rest]]
    return rows.select(np.concatenate(drawn))


def class_weights(rule: str, counts: Sequence[int]) -> tuple[float, float]:
    """Weights of the loss, (bona fide, spoof), 1 on average over the training data."""
    if rule == "auto":
        first, second = (1 / count for count in counts)
    elif rule == "none":
        first = second = 1.0
    else:
        first, second = map(float, rule.split(","))
    mean = (first * counts[0] + second * counts[1]) / sum(counts)
    return first / mean, second / mean


def dropin_of(model: nn.Module, recipe: Recipe, checkpoint: Path | None) -> DropIn | None:
    if not recipe.method.endswith("+dropin"):
        return None
    if checkpoint is not None:
        return resume_dropin(model, checkpoint, recipe.dropin, total_steps="trainer")
    return DropIn(model, recipe.dropin, total_steps="trainer")


def learned_elements(model: nn.Module, dropin: DropIn | None) -> int:
    """How many elements of the weights learn: of layers whose existing neurons are frozen, those of new neurons."""
    learned = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    if dropin is None or not dropin.config.freeze_existing:
        return sum(learned.values())
    new = 0
    for known in dropin.watched:
        held = sum(learned.pop(id(parameter), 0) for parameter in known.site.parameters)
        learned.pop(id(known.site.down.bias), None)
        new += held // known.site.width * int(known.statistics.fresh.sum())
    return sum(learned.values()) + new


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    make = OPTIMIZERS[recipe.method.partition("+")[0]]
    return make(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def take_best(trainer: Trainer, model: nn.Module, dev: Dataset, keep: KeepBest) -> tuple[float, int | None, int]:
    """Puts the best weights of the run into the model: dev EER, step or None for a mean, how many were averaged."""
    if not keep.entries:  # ended before the first measurement, or the last weights are asked for
        last, step = trainer.state.log_history, trainer.state.global_step
        measured = [entry["eval_eer"] for entry in last if "eval_eer" in entry and entry["step"] == step]
        return measured[-1] if measured else trainer.evaluate()["eval_eer"], step, 1
    best, step = keep.entries[0]
    files = [keep.file(step) for _, step in keep.entries]
    if len(files) > 1:
        put(model, mean_of(files))
        averaged = (trainer.predict(dev).metrics or {})["test_eer"]  # type: ignore[arg-type]
        if averaged < best:
            return averaged, None, len(files)
    put(model, mean_of(files[:1]))
    return best, step, 1
