"""What the commands share: the screen, progress, a log file, errors in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

MAIN = (
    os.environ.get("RANK", "0") == "0"
)  # of several processes under accelerate launch or torchrun, the one that speaks and writes
console = Console(quiet=not MAIN)
SHOWN = {
    "loss": "loss {:.4f}",
    "learning_rate": "rate {:.2e}",
    "eval_eer": "dev EER {:.2%}",
    "grad_norm": "gradient {:.3g}",
}
PATIENCE = 15  # seconds between plain lines, where there is no terminal


class Report:
    """Progress of stages: bars on a terminal, a plain line now and then elsewhere; what is said goes to the log file too."""

    def __init__(self, progress: Progress | None, log_file: Path | None) -> None:
        self.progress, self.log_file = progress, log_file
        self.tasks: dict[str, Any] = {}
        self.told: dict[str, float] = {}
        self.unwritten: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not MAIN:
            return
        if self.progress is not None:
            if stage not in self.tasks:
                self.tasks[stage] = self.progress.add_task(stage, total=total)
            self.progress.update(self.tasks[stage], completed=done)
        elif done == total or time.monotonic() - self.told.setdefault(stage, 0.0) > PATIENCE:
            self.told[stage] = time.monotonic()
            print(f"{stage}: {done} of {total}", flush=True)

    def say(self, line: str) -> None:
        """Says a line, and writes it to the log file as soon as the file's folder is there."""
        console.print(escape(line), soft_wrap=True)
        if self.log_file is None or not MAIN:
            return
        self.unwritten.append(line)
        if self.log_file.parent.is_dir():
            with self.log_file.open("a", encoding="utf-8") as file:
                file.writelines(f"{each}\n" for each in self.unwritten)
            self.unwritten.clear()

    def log(self, entry: dict[str, float]) -> None:
        """What Trainer logs, as one line; neuron figures stay with the integrations."""
        told = [form.format(entry[name]) for name, form in SHOWN.items() if name in entry]
        if told:
            self.say(f"step {entry['step']:.0f} of {entry['steps']:.0f}: {', '.join(told)}")


@contextlib.contextmanager
def bars(log_file: Path | None = None) -> Iterator[Report]:
    """Progress of stages: report(stage, done, total)."""
    if not console.is_terminal:
        yield Report(None, log_file)
        return
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield Report(progress, log_file)


def quiet() -> None:
    """Keeps the libraries' own progress bars off the screen; their warnings stay."""
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()
    if not MAIN:
        logging.getLogger("hf_neuroplastic").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
    if not console.is_terminal:
        datasets.disable_progress_bars()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can put right is said in one line, with exit code 2; anything else is a bug and shows its traceback."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        raise typer.Exit(141) from None
    except (ValueError, OSError, ImportError, TypeError) as error:
        _tell(error)
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # named, not imported: --help needs no model library
            raise
        _tell(error)


def _tell(error: Exception) -> None:
    if os.environ.get("HF_NEUROPLASTIC_DEBUG"):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    Console(stderr=True).print(
        f"[red]error:[/] {escape(' '.join(lines)) or type(error).__name__}", soft_wrap=True, markup=True
    )
    raise typer.Exit(2) from None
