"""Fine-tuning an audio classifier to tell bona fide from spoofed speech, by a recipe: what the command line runs."""

from __future__ import annotations

import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
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
from ..huggingface.saved_keys import accept_saved_keys
from ..neurons.dropin import DropIn
from ..neurons.observe.health import neuron_health
from ..neurons.operate.optimizer_state import unwrap_optimizer
from ..neurons.sites import select_sites
from ..optimizer.neuroplastic import NeuroPlastic
from .augment import augmentation
from .corpora.rows import LABELS
from .detector_file import DetectorFile, log_prior_odds
from .evaluation import Scores, bona_fide_scores, taken_by, window_collator
from .metrics import equal_error_rate
from .recipe import METHODS, Recipe
from .selection import KeepBest, mean_of, put
from .trainable import freeze, merged, require_peft, with_lora

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "neuroplastic": NeuroPlastic,
    "neuroplastic-8bit": partial(NeuroPlastic, state_bits=8),  # state that cannot be reset neuron by neuron: no DropIn
}
assert {method.partition("+")[0] for method in METHODS} == set(OPTIMIZERS)
Log = Callable[[dict[str, float]], object]


@dataclass(frozen=True)
class Run:
    """The outcome of one run.

    dev_eer: of the weights that were kept, chosen on dev; best_step: where they come from, None for the mean of the best ones
    (then `averaged` counts them). history: training loss, learning rate and dev EER by step. health: a row per logged step:
    the keys of DropIn.report and "step"; empty without DropIn. plasticity: a row per logged step: "step", NeuroPlastic's
    "alpha_rms", and "weak", the share of weak neurons by layer, as far as there are any. counts: training utterances (bona
    fide, spoofed), as drawn in an epoch. class_weights: of the loss, (bona fide, spoof). evaluation: scores of unseen data, if
    there were any.
    """

    name: str
    seconds: float
    steps: int
    train_loss: float
    neurons_replaced: int
    dev_eer: float | None
    best_step: int | None
    averaged: int
    counts: tuple[int, ...]
    class_weights: tuple[float, float]
    interrupted: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)
    plasticity: list[dict[str, Any]] = field(default_factory=list)
    evaluation: Scores | None = None

    @property
    def eer(self) -> float | None:
        """The EER of the evaluation, 0 to 1."""
        return None if self.evaluation is None else self.evaluation.eer

    def summary(self) -> dict[str, Any]:
        """What results.json holds of a run."""
        left_out = ("evaluation", "seconds")
        known = {name: value for name, value in self.__dict__.items() if name not in left_out}
        trials = None if self.evaluation is None else len(self.evaluation.labels)
        return {**known, "seconds": round(self.seconds, 2), "eer": self.eer, "trials": trials}


def fine_tune(
    model: Any,
    feature_extractor: Any,
    train: Dataset,
    dev: Dataset | None,
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: bool = False,
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
        raise FileNotFoundError(f"{output} holds no whole checkpoint to resume from; start without resuming")
    set_seed(recipe.seed)
    train = balanced(train, recipe.seed) if recipe.balanced else train
    counts = tuple(np.bincount(train["label"], minlength=2).tolist())
    weights = class_weights(recipe.class_weights, counts)
    freeze(model, "nothing" if recipe.lora else recipe.freeze)
    model = with_lora(model, recipe.lora) if recipe.lora else model
    dropin = dropin_of(model, recipe, checkpoint)
    with tempfile.TemporaryDirectory() as scratch, signals() as stop:
        folder = output or Path(scratch)
        keep = KeepBest(folder / "best", recipe.average, recipe.patience)
        callbacks: list[TrainerCallback] = [] if dropin is None else [DropInCallback(dropin)]
        callbacks += [] if dev is None else [keep]
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
        trainer = DetectorTrainer(
            model,
            arguments,
            data_collator=collator,
            train_dataset=train,
            eval_dataset=dev,
            processing_class=feature_extractor,  # saved with every checkpoint
            callbacks=callbacks,
            optimizers=(optimizer_of(model, recipe), None),
            compute_loss_func=partial(weighted_loss, torch.tensor(weights)),
            compute_metrics=eer_of,
        )
        trainer.scoring_collator = window_collator(feature_extractor, recipe.seconds, model=model)
        trainer.remove_callback(PrinterCallback)
        if dropin is None:
            accept_saved_keys(
                model
            )  # without it Trainer resumes AST from random weights; a DropInCallback sees to it itself
        else:
            callbacks[0].attach(trainer)  # type: ignore[attr-defined]
        start = time.perf_counter()
        done = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - start
        replaced = 0
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
    )


def require_trainable(model: nn.Module, recipe: Recipe) -> None:
    """Raises, before any audio is read, what `fine_tune` would raise of the model: it stays as it is."""
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        freeze(model, "nothing" if recipe.lora else recipe.freeze)
        if recipe.lora:
            require_peft()
        elif recipe.method.endswith("+dropin"):
            select_sites(model, recipe.dropin.layers, recipe.dropin.recurrent)
    finally:
        for parameter, before in learns:
            parameter.requires_grad_(before)


def detector_file_of(run: Run, recipe: Recipe, train: Dataset, dev: Scores | None) -> DetectorFile:
    """What stands beside the weights of a run: window, prior and attacks of the training data, the threshold of dev's EER."""
    odds = log_prior_odds(run.counts, run.class_weights)
    attacks = sorted(set(train["attack"]) - {"-"}) if "attack" in train.column_names else []
    return DetectorFile(recipe.seconds, odds, None if dev is None else dev.threshold - odds, attacks or None)


def require_both_classes(name: str, rows: Dataset) -> None:
    """Raises ValueError where the rows of a split are of one class only."""
    if len(classes := set(rows["label"])) < len(LABELS):
        held = [LABELS[label] for label in classes]
        raise ValueError(f"the {name} data hold only {held}; both of {LABELS} are needed")


def balanced(rows: Dataset, seed: int) -> Dataset:
    """The rows, those of the smaller class repeated until both classes are of one size."""
    labels = np.asarray(rows["label"])
    classes = [np.flatnonzero(labels == label) for label in range(len(LABELS))]
    largest, rng = max(map(len, classes)), np.random.default_rng(seed)
    drawn = [(np.tile(each, largest // len(each)), rng.permutation(each)[: largest % len(each)]) for each in classes]
    return rows.select(np.concatenate([part for parts in drawn for part in parts]))


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


def weighted_loss(weights: Tensor, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross entropy, weighted by class, over all batches of a step."""
    logits = outputs["logits"].float()
    loss = nn.functional.cross_entropy(logits, labels, weight=weights.to(logits.device), reduction="sum")
    return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def eer_of(prediction: EvalPrediction) -> dict[str, float]:
    scores = bona_fide_scores(prediction.predictions)
    return {"eer": equal_error_rate(scores, prediction.label_ids)[0]}


def dropin_of(model: nn.Module, recipe: Recipe, checkpoint: Path | None) -> DropIn | None:
    if not recipe.method.endswith("+dropin"):
        return None
    if checkpoint is not None:
        return resume_dropin(model, checkpoint, recipe.dropin, total_steps="trainer")
    return DropIn(model, recipe.dropin, total_steps="trainer")


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    make = OPTIMIZERS[recipe.method.partition("+")[0]]
    return make(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def take_best(trainer: Trainer, model: nn.Module, dev: Dataset, keep: KeepBest) -> tuple[float, int | None, int]:
    """Puts the best weights of the run into the model: dev EER, step or None for a mean, how many were averaged."""
    if not keep.entries:  # ended before the first measurement
        eer = trainer.evaluate()["eval_eer"]
        return eer, trainer.state.global_step, 1
    best, step = keep.entries[0]
    files = [keep.file(step) for _, step in keep.entries]
    if len(files) > 1:
        put(model, mean_of(files))
        averaged = (trainer.predict(dev).metrics or {})["test_eer"]  # type: ignore[arg-type]
        if averaged < best:
            return averaged, None, len(files)
    put(model, mean_of(files[:1]))
    return best, step, 1


def training_arguments(recipe: Recipe, folder: Path, *, save: bool, evaluates: bool) -> TrainingArguments:
    # transformers 5.23 has a new name for it
    renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    checkpointing = "activation_checkpointing" if renamed else "gradient_checkpointing"
    extra: dict[str, Any] = {checkpointing: True} if recipe.gradient_checkpointing else {}
    return TrainingArguments(
        str(folder),
        use_cpu=not torch.accelerator.is_available(),  # unsaid, processes without a GPU would train each on its own
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=2 * recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup_share * recipe.steps),
        logging_steps=max(1, recipe.steps // 20),
        eval_strategy="steps" if evaluates else "no",
        eval_steps=recipe.measured_every,
        save_strategy="steps" if save else "no",
        save_steps=recipe.measured_every,
        save_total_limit=2,
        seed=recipe.seed,
        remove_unused_columns=False,  # the collator reads the column `audio`
        label_names=["labels"],
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[name.strip() for name in recipe.report_to.split(",") if name.strip()],
        log_level="error",
        **extra,
    )


class DetectorTrainer(Trainer):
    """Trainer whose evaluation collates otherwise than training: the same windows every time, no augmentation."""

    scoring_collator: Any

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Without what the model does not take, such as the attention mask that Whisper's extractor makes."""
        taken = taken_by(self.accelerator.unwrap_model(self.model)) | {"labels"}
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name in taken})

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self._scoring():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self._scoring():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        training, self.data_collator = self.data_collator, self.scoring_collator
        try:
            yield
        finally:
            self.data_collator = training

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Logits alone, whatever else the model's configuration has it put out."""
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, outputs[0] if isinstance(outputs, tuple) else outputs, labels


class Watch(TrainerCallback):
    """Tells the collator the epoch, reports steps and logs, and ends training with a checkpoint once a signal came.

    stop: the signals that came. plasticity: filled as `Run.plasticity`.
    """

    def __init__(
        self,
        collator: Any,
        stop: list[int],
        log: Log | None,
        progress: Callable[[int, int], object] | None,
        dropin: DropIn | None,
    ) -> None:
        self.collator, self.stop, self.log, self.progress = collator, stop, log, progress
        self.dropin, self.plasticity = dropin, list[dict[str, Any]]()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)
        if _anywhere(bool(self.stop), args.device):
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.plasticity.append({"step": state.global_step, **plasticity_of(optimizer, self.dropin)})
        if self.log is not None and state.is_world_process_zero and logs:
            self.log({"step": state.global_step, "steps": state.max_steps, **logs})


def plasticity_of(optimizer: Any, dropin: DropIn | None) -> dict[str, Any]:
    """`alpha_rms` of NeuroPlastic, and `weak` by layer of DropIn, as far as there are any."""
    found: dict[str, Any] = {}
    inner = unwrap_optimizer(optimizer)
    if isinstance(inner, NeuroPlastic) and inner.state:
        alpha = float(inner.diagnostics()["alpha_rms"])
        found |= {"alpha_rms": alpha} if math.isfinite(alpha) else {}
    if dropin is not None:
        health = {known.site.name: neuron_health(known.statistics, [known]) for known in dropin.watched}
        found["weak"] = {name: values["neuro/weak_fraction"] for name, values in health.items()}
    return found


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes, which a signal may reach at different steps."""
    if not torch.distributed.is_initialized():
        return here
    flag = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def signals() -> Iterator[list[int]]:
    """The list that SIGINT and SIGTERM are put into, the first of each; a second one ends the process as ever."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    before: dict[Any, Any] = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, note)
    except ValueError:  # not the main thread, which alone may say what happens on signals
        pass
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
