"""DropIn under transformers.Trainer."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..neurons.config import DropInConfig
from ..neurons.decide.decisions import is_due
from ..neurons.dropin import DropIn
from ..neurons.operate.optimizers import Optimizers
from ..neurons.operate.step_factors import refuse_decay
from ..optimizer.neuroplastic import NeuroPlastic
from .checkpoint import INDEX_FILE, SideFileError, digest_of, load_side_files, resume_dropin, save_side_files, saved_by
from .hub import tag_model
from .saved_keys import accept_saved_keys

SLACK = 60.0  # seconds that clocks of file systems may be late
logger = logging.getLogger(__name__)


class DropInCallback(TrainerCallback, ExportableState):
    """Runs a DropIn from Trainer's events and keeps its state beside every checkpoint.

        Trainer(model, args, ..., callbacks=[DropInCallback(DropInConfig())])

    Args:
        dropin: a DropInConfig, with which the callback patches the model when Trainer is made, or when training begins where
            Trainer makes its model itself (model_init, hyper-parameter search) or got the callback by add_callback; or a
            DropIn made before. With model_init on several processes a configuration that grows neurons finds no room for
            them: let model_init call `reserve`.
        resume_from: the checkpoint folder whose neuron statistics a resumed run starts with. By default that of the checkpoint
            that Trainer resumes, which trainer_state.json tells. False starts with new statistics, as for a checkpoint that
            was saved without DropIn. A run that grows neurons and resumes with a model loaded from its checkpoint must name
            the folder, here or in TrainingArguments: the widths are made before Trainer knows that it resumes.

    The side files are written just before trainer_state.json, so that a checkpoint with that file is whole: before Trainer
    removes older checkpoints, and before a push to the Hub.

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
        self._made_here = self.dropin is None
        self._trainer: Any = None
        self._resumed: Path | None = None  # where the neurons come from since Trainer was made
        self._last: tuple[TrainingArguments, TrainerState, float] | None = None  # the last event in training, and when

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
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "restore_callback_states_from_checkpoint=True would put an empty callback in the place of DropInCallback, "
                "which restores its state by itself; leave the argument out"
            )
        if model is not None:
            accept_saved_keys(model)  # Trainer resumes, and loads the best checkpoint, by a plain load_state_dict
        if self._made_here and self.dropin is not None and model is not None and not self.dropin.watches(model):
            raise RuntimeError(
                "this DropInCallback belongs to another Trainer; give each Trainer a callback of its own"
            )
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
        if model is not None and self._made_here and (self.dropin is None or not self.dropin.watches(model)):
            self._take(model)
        if self.dropin is None or not self.dropin.watches(model):
            raise RuntimeError(
                "the DropIn of this DropInCallback watches another model than the one that is trained; give the callback a "
                "DropInConfig, and it makes a DropIn for the model of the Trainer"
            )
        if self._resumed is not None and state.global_step == 0:
            raise ValueError(
                f"the neurons were resumed from {self._resumed}, but training starts at step 0; call "
                f"trainer.train(resume_from_checkpoint={str(self._resumed)!r}), or leave out resume_from to train anew"
            )
        self._resumed, self._last, self.dropin.driven_to = None, None, None
        self.dropin.total_steps = state.max_steps
        if state.global_step > 0 and self.resume_from is not False:
            load_side_files(self.dropin, self._resume_folder(args, state))
        else:
            self.dropin.restart(state.global_step)
        if self.config.freeze_existing:
            refuse_decay(Optimizers(optimizer), self.dropin.sites)  # before the first step, which would decay
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
        if self.config.acts or any(isinstance(one, NeuroPlastic) for one in Optimizers(optimizer).found):
            tag_model(model)

    def _take(self, model: nn.Module) -> None:
        """Patches a model that Trainer made after it was made itself."""
        if self.config.extra_neurons is not None and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                "extra_neurons needs room that cannot be made once a model is wrapped for several processes: give Trainer the "
                "model, or let model_init call hf_neuroplastic.reserve(model, count)"
            )
        if self.dropin is not None:
            self.dropin.unpatch()
        accept_saved_keys(model)
        self.dropin = DropIn(model, self.config, total_steps="trainer")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert self.dropin is not None  # on_train_begin saw to it
        if self.dropin.driven_to == (id(state), state.global_step):
            raise RuntimeError(
                "two DropInCallbacks drive one DropIn, or one is given twice: it would count every step twice; give Trainer one"
            )
        self.dropin.driven_to = (id(state), state.global_step)
        self.dropin.step(optimizer)
        self._last = args, state, time.time()
        self._log(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last = args, state, time.time()
        self._log(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last = None

    def _log(self, control: TrainerControl) -> None:
        """When Trainer is about to log, which its flow control decided before this callback was asked."""
        if self._trainer is not None and self.dropin is not None and control.should_log:
            self._trainer.log(self.dropin.report())
            control.should_log = True  # taken back by every log; Trainer's own loss and rate come after this event

    def state(self) -> dict[str, Any]:
        """What Trainer keeps of this callback in trainer_state.json, asked for when all else of a checkpoint is written.

        Writes the side files at that moment, and tells their digest and folder: the checkpoint that names them is theirs.
        """
        folder = self._folder_being_saved()
        if self.dropin is None or folder is None:
            return {"args": {}, "attributes": {}}
        digest = save_side_files(self.dropin, folder)
        return {"args": {}, "attributes": {"saved": digest, "folder": str(folder)}}

    def _folder_being_saved(self) -> Path | None:
        """The folder of the checkpoint that Trainer is writing, if it is writing one."""
        if self._last is None:
            return None
        args, state, since = self._last
        if not state.is_world_process_zero:
            return None
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        output = Path(args.output_dir or ".")
        folders = [output / name, *output.glob(f"*/{name}")]  # hyper-parameter search has a folder for each trial
        written = {each.stat().st_mtime: each for each in folders if each.is_dir()}
        newest = max(written, default=0.0)
        return written[newest] if newest > since - SLACK else None

    def _named_folder(self, args: TrainingArguments) -> Path | None:
        """The folder to resume from, if one was named and holds what is needed."""
        if isinstance(self.resume_from, (str, os.PathLike)):
            return Path(self.resume_from)
        named = args.resume_from_checkpoint  # a path, or "True" from a command line
        held = self.resume_from is not False and isinstance(named, str) and (Path(named) / INDEX_FILE).is_file()
        return Path(str(named)) if held else None

    def _resume_folder(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The folder of the checkpoint that Trainer resumes, by what its trainer_state.json says of the side files."""
        wanted, named = saved_by(state.stateful_callbacks), self._named_folder(args)
        here = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if isinstance(self.resume_from, (str, os.PathLike)):
            candidates = [Path(self.resume_from)]
        else:
            homes = (Path(home) for home in wanted.values() if home)
            candidates = [*([] if named is None else [named]), *homes, *([here] if wanted else [])]
        held = [each for each in candidates if (each / INDEX_FILE).is_file()]
        for each in held:
            self._require_step(each, state.global_step)
        found = next((each for each in held if not wanted or digest_of(each) in wanted), None)
        if found is None:
            where = named or (held or [here])[0]
            lacks = f"is of another run than {where}" if held else f"{where} holds no {INDEX_FILE}"
            raise SideFileError(
                f"training resumes at step {state.global_step}, but "
                + (f"the checkpoint {lacks}" if held else lacks)
                + ". If the checkpoint lies elsewhere, pass DropInCallback(..., resume_from=folder); resume_from=False starts "
                "with new neuron statistics, as for a checkpoint that was saved without DropIn"
            )
        return found

    @staticmethod
    def _require_step(folder: Path, step: int) -> None:
        saved = folder / TRAINER_STATE_NAME
        if saved.is_file() and (other := TrainerState.load_from_json(str(saved)).global_step) != step:
            raise SideFileError(
                f"training resumes at step {step}, but {folder} is of step {other}; name one checkpoint in both resume_from "
                f"and trainer.train(resume_from_checkpoint=...)"
            )
