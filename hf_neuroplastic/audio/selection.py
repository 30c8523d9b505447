"""The best weights of a run, chosen on dev: the checkpoint of the lowest EER, or the mean of a few."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

INDEX = "best.json"


def learned(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that learn, and floating-point buffers."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return parameters | {name: b for name, b in model.named_buffers() if b.is_floating_point()}


@torch.no_grad()
def put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Gives the model weights of `learned`."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in weights.items():
        own[name].copy_(value)


def mean_of(files: list[Path]) -> dict[str, Tensor]:
    """The mean of saved weights, one file in memory at a time."""
    total: dict[str, Tensor] = {}
    for file in files:
        for name, value in load_file(file).items():
            total[name] = total[name] + value.double() if name in total else value.double()
    return {name: (value / len(files)).to(torch.float32) for name, value in total.items()}


class KeepBest(TrainerCallback):
    """Saves the weights of the `count` lowest dev EERs in `folder`, and ends training without a better one for `patience`.

    Entries are (EER, step), best first; of equal EERs the earlier one is better. They stand in best.json beside the weights, so
    that a resumed run goes on with them.
    """

    def __init__(self, folder: Path, count: int, patience: int | None) -> None:
        self.folder, self.count, self.patience = folder, count, patience
        self.entries: list[tuple[float, int]] = []
        index = folder / INDEX
        if index.exists():
            self.entries = [(float(eer), int(step)) for eer, step in json.loads(index.read_text())]

    def file(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def forget_after(self, step: int) -> None:
        """Leaves out entries later than the step that a run resumes from."""
        self.entries = [entry for entry in self.entries if entry[1] <= step]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.forget_after(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is None or "eval_eer" not in metrics:
            return
        entry, dropped = (metrics["eval_eer"], state.global_step), list[tuple[float, int]]()
        self.entries = sorted([*(held for held in self.entries if held[1] != entry[1]), entry])
        self.entries, dropped = self.entries[: self.count], self.entries[self.count :]
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            if entry in self.entries:
                weights = {name: value.cpu().contiguous() for name, value in learned(model).items()}
                save_file(weights, draft := self.folder / "draft.safetensors")
                os.replace(draft, self.file(entry[1]))
            (self.folder / INDEX).write_text(json.dumps(self.entries))
            for _, step in dropped:
                self.file(step).unlink(missing_ok=True)
        best = self.entries[0][1]
        since = (state.global_step - best) // max(1, args.eval_steps or 1)
        if self.patience is not None and since >= self.patience:
            control.should_training_stop = True
