"""DropIn under transformers.Trainer."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..neurons.config import DropInConfig
from ..neurons.decide.decisions import is_due
from ..neurons.dropin import DropIn
from ..neurons.operate.optimizer_state import unwrap_optimizer
from ..optimizer.neuroplastic import NeuroPlastic
from .checkpoint import INDEX_FILE, SideFileError, load_side_files, resume_dropin, save_side_files
from .hub import tag_model
from .saved_keys import accept_saved_keys

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
            starts with new statistics, as for a checkpoint that was saved without DropIn. A run that grows neurons and
            resumes with a model loaded from its checkpoint must name the folder, here or in TrainingArguments: the widths
            are made before Trainer knows that it resumes.

    Attributes:
        dropin: the DropIn, None until the model is known.
    """

    def __init__(
        self, dropin: DropInConfig | DropIn | None = None, *, resume_from: str | os.PathLike[str] | bool | None = None
    ) -> None:
        if dropin is not None and not isinstance(dropin, (DropInConfig, DropIn)):
            raise TypeError(f"dropin must be a DropInConfig or a DropIn, got {type(dropin).__name__}")
        if resume_from is not None and not isinstance(resume_from, (str, os.PathLike, bool)):
            raise TypeError(f"resume_from must be the path of a checkpoint, False or None, got {resume_from!r}")
        self.dropin = dropin if isinstance(dropin, DropIn) else None
        self.config = dropin.config if isinstance(dropin, DropIn) else (dropin or DropInConfig())
        self.resume_from = resume_from
        self._trainer: Any = None
        self._resumed: Path | None = None  # where the neurons come from since Trainer was made

    def attach(self, trainer: Any) -> DropInCallback:
        """Logs neuron statistics through `trainer`, so that every reporting integration receives them.

        A callback gets no handle of its trainer, and values added in on_log reach only later callbacks.
        """
        self._trainer = trainer
        return self

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is not None:
            accept_saved_keys(model)  # Trainer resumes, and loads the best checkpoint, by a plain load_state_dict
        if self.dropin is None and model is not None:
            self._resumed = self._named_folder(args)
            if self._resumed is None:
                self.dropin = DropIn(model, self.config, total_steps="trainer")
            else:
                self.dropin = resume_dropin(model, self._resumed, self.config, total_steps="trainer")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self.dropin is None or not self.dropin.watches(model):
            raise RuntimeError(
                "DropInCallback watches no layer of the model that is trained: it was added after Trainer was made, belongs to "
                "another Trainer, or Trainer makes its model itself (model_init). Write dropin = DropIn(model, config) and "
                "pass DropInCallback(dropin), or give a new callback in Trainer(callbacks=[...])"
            )
        if self._resumed is not None and state.global_step == 0:
            raise ValueError(
                f"the neurons were resumed from {self._resumed}, but training starts at step 0; call "
                f"trainer.train(resume_from_checkpoint={str(self._resumed)!r}), or leave out resume_from to train anew"
            )
        self._resumed = None
        self.dropin.total_steps = state.max_steps
        if state.global_step > 0 and self.resume_from is not False:
            load_side_files(self.dropin, self._resume_folder(args, state))
        else:
            self.dropin.restart(state.global_step)
        self.dropin.scale_steps(optimizer)
        steps = range(1, state.max_steps + 1)
        if self.config.max_fraction > 0 and not any(is_due(step, self.config, state.max_steps) for step in steps):
            logger.warning(
                "no neuron will be replaced: %d steps leave no event to interval=%s, start=%s, stop=%s and maturity=%s; train "
                "longer, or give DropInConfig smaller ones",
                state.max_steps,
                self.config.interval,
                self.config.start,
                self.config.stop,
                self.config.maturity,
            )
        if self.config.acts or isinstance(unwrap_optimizer(optimizer), NeuroPlastic):
            tag_model(model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert self.dropin is not None  # on_train_begin saw to it
        self.dropin.step(optimizer)
        self._log(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log(control)

    def _log(self, control: TrainerControl) -> None:
        """When Trainer is about to log, which its flow control decided before this callback was asked."""
        if self._trainer is not None and self.dropin is not None and control.should_log:
            self._trainer.log(self.dropin.report())
            control.should_log = True  # taken back by every log; Trainer's own loss and rate come after this event

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint_folder(args, state)
        if self.dropin is None or not state.is_world_process_zero:
            return
        if folder.is_dir():
            save_side_files(self.dropin, folder)
        else:  # hyper-parameter search puts its checkpoints elsewhere
            logger.warning(
                "no checkpoint folder %s: neuron statistics of step %d are not saved", folder, state.global_step
            )

    def _named_folder(self, args: TrainingArguments) -> Path | None:
        """The folder to resume from, if one was named and holds what is needed."""
        if isinstance(self.resume_from, (str, os.PathLike)):
            return Path(self.resume_from)
        named = args.resume_from_checkpoint  # a path, or "True" from a command line
        held = self.resume_from is not False and isinstance(named, str) and (Path(named) / INDEX_FILE).is_file()
        return Path(str(named)) if held else None

    def _resume_folder(self, args: TrainingArguments, state: TrainerState) -> Path:
        folder = self._named_folder(args) or _checkpoint_folder(args, state)
        if not (folder / INDEX_FILE).is_file():
            raise SideFileError(
                f"training resumes at step {state.global_step}, but {folder} holds no {INDEX_FILE}. If the checkpoint lies "
                f"elsewhere, pass DropInCallback(..., resume_from=folder); if it was saved without DropIn, resume_from=False "
                f"starts with new neuron statistics"
            )
        saved = folder / TRAINER_STATE_NAME
        if saved.is_file() and (step := TrainerState.load_from_json(str(saved)).global_step) != state.global_step:
            raise SideFileError(
                f"training resumes at step {state.global_step}, but {folder} is of step {step}; name one checkpoint in both "
                f"resume_from and trainer.train(resume_from_checkpoint=...)"
            )
        return folder


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
