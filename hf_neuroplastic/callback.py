"""DropIn under transformers.Trainer."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .checkpoint import INDEX_FILE, SideFileError, load_side_files, save_side_files
from .config import DropInConfig
from .decisions import is_due
from .dropin import DropIn

logger = logging.getLogger(__name__)


class DropInCallback(TrainerCallback):
    """Runs a DropIn from Trainer's events and keeps its state beside every checkpoint.

        Trainer(model, args, ..., callbacks=[DropInCallback(DropInConfig())])

    Args:
        dropin: a DropInConfig, with which the callback patches the model when Trainer is made; or a DropIn made before.
            With `Trainer(model_init=...)`, which makes its model later, only the second way works, and so it does for
            `trainer.add_callback`.
        resume_from: the checkpoint folder whose neuron statistics a resumed run starts with. By default the folder that
            TrainingArguments.resume_from_checkpoint names, else the checkpoint of the resumed step in output_dir. False
            starts with new statistics, as for a checkpoint that was saved without DropIn.

    Attributes:
        dropin: the DropIn, None until the model is known.
    """

    def __init__(
        self, dropin: DropInConfig | DropIn | None = None, *, resume_from: str | os.PathLike[str] | bool | None = None
    ) -> None:
        if dropin is not None and not isinstance(dropin, (DropInConfig, DropIn)):
            raise TypeError(f"dropin must be a DropInConfig or a DropIn, got {type(dropin).__name__}")
        self.dropin = dropin if isinstance(dropin, DropIn) else None
        self.config = dropin.config if isinstance(dropin, DropIn) else (dropin or DropInConfig())
        self.resume_from = resume_from
        self._trainer: Any = None

    def attach(self, trainer: Any) -> DropInCallback:
        """Logs neuron statistics through `trainer`, so that every reporting integration receives them.

        A callback gets no handle of its trainer, and values added in on_log reach only later callbacks.
        """
        self._trainer = trainer
        return self

    def on_init_end(self, args, state, control, model: nn.Module | None = None, **kwargs):
        if self.dropin is None and model is not None:
            self.dropin = DropIn(model, self.config)

    def on_train_begin(self, args, state, control, model: nn.Module | None = None, **kwargs):
        if self.dropin is None or not self.dropin.watches(model):
            raise RuntimeError(
                "DropInCallback watches no layer of the model that is trained: it was added after Trainer was made, belongs to "
                "another Trainer, or Trainer makes its model itself (model_init). Write dropin = DropIn(model, config) and "
                "pass DropInCallback(dropin), or give a new callback in Trainer(callbacks=[...])"
            )
        self.dropin.total_steps = state.max_steps
        if state.global_step > 0 and self.resume_from is not False:
            load_side_files(self.dropin, self._resume_folder(args, state))
        else:
            self.dropin.restart(state.global_step)
        steps = range(1, state.max_steps + 1)
        if self.config.max_fraction > 0 and not any(is_due(step, self.config, state.max_steps) for step in steps):
            logger.warning("no neuron will be replaced: %d steps leave no event to %s", state.max_steps, self.config)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        assert self.dropin is not None  # on_train_begin saw to it
        self.dropin.step(optimizer)
        self._log(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._log(control)

    def _log(self, control) -> None:
        """When Trainer is about to log, which its flow control decided before this callback was asked."""
        if self._trainer is not None and self.dropin is not None and control.should_log:
            self._trainer.log(self.dropin.report())

    def on_save(self, args, state, control, **kwargs):
        folder = _checkpoint_folder(args, state)
        if self.dropin is None or not state.is_world_process_zero:
            return
        if folder.is_dir():
            save_side_files(self.dropin, folder)
        else:  # hyper-parameter search puts its checkpoints elsewhere
            logger.warning(
                "no checkpoint folder %s: neuron statistics of step %d are not saved", folder, state.global_step
            )

    def _resume_folder(self, args, state) -> Path:
        if isinstance(self.resume_from, (str, os.PathLike)):
            return Path(self.resume_from)
        named = args.resume_from_checkpoint  # a path, or "True" from a command line
        candidates = [Path(named)] if isinstance(named, str) and Path(named).is_dir() else []
        candidates.append(_checkpoint_folder(args, state))
        for folder in candidates:
            if (folder / INDEX_FILE).is_file():
                return folder
        raise SideFileError(
            f"training resumes at step {state.global_step}, but none of {[str(c) for c in candidates]} holds {INDEX_FILE}. "
            f"If the checkpoint lies elsewhere, pass DropInCallback(..., resume_from=folder); if it was saved without "
            f"DropIn, resume_from=False starts with new neuron statistics"
        )


def _checkpoint_folder(args, state) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
