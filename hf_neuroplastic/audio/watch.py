"""What goes on beside training: progress, logs, signals, and how plastic optimizer and neurons are."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..neurons.dropin import DropIn
from ..neurons.observe.health import neuron_health
from ..neurons.operate.optimizers import Optimizers
from ..optimizer.neuroplastic import NeuroPlastic

Log = Callable[[dict[str, float]], object]


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
    inner = next((one for one in Optimizers(optimizer).found if isinstance(one, NeuroPlastic)), None)
    if inner is not None and inner.state:
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
