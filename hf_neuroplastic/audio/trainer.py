"""transformers.Trainer for detectors: its arguments, its loss, its metric, and an evaluation that is not augmented."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from .evaluation import bona_fide_scores, taken_by
from .metrics import equal_error_rate
from .recipe import Recipe

ENGINES = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}  # as accelerate launch names them


def require_data_parallel() -> None:
    """Raises ValueError where `accelerate launch` has chosen an engine that splits weights or makes the optimizer itself."""
    for name, engine in ENGINES.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(
                f"a detector is trained data-parallel (DDP), and accelerate launch was told to use {engine}: its best weights "
                "are chosen and averaged whole, with the recipe's optimizer; use torchrun, or accelerate launch --multi_gpu"
            )


def training_arguments(recipe: Recipe, folder: Path, *, save: bool, evaluates: bool) -> TrainingArguments:
    require_data_parallel()
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


def weighted_loss(weights: Tensor, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross entropy, weighted by class, over all batches of a step."""
    logits = outputs["logits"].float()
    loss = nn.functional.cross_entropy(logits, labels, weight=weights.to(logits.device), reduction="sum")
    return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def penalised_loss(
    loss: Callable[..., Tensor], penalty: Callable[[], Tensor], batches: int, outputs: Any, labels: Tensor, **given: Any
) -> Tensor:
    """The loss of one of so many batches of a step, with its part of a penalty."""
    return loss(outputs, labels, **given) + penalty().to(outputs["logits"].device) / batches


def eer_of(prediction: EvalPrediction) -> dict[str, float]:
    scores = bona_fide_scores(prediction.predictions)
    return {"eer": equal_error_rate(scores, prediction.label_ids)[0]}
