"""The command line: hf-neuroplastic demo | train | inspect."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors import SafetensorError
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from ..audio import keep_readable, load_asvspoof2019, load_folder
from ..audio.demo import MODELS, PICTURE, RESULTS, label_settings, run_demo, write_results
from ..audio.figures import draw_runs
from ..audio.training import METHODS, Run, Settings, fine_tune
from ..huggingface.hub import save_for_hub
from ..neurons.config import DropInConfig
from ..neurons.sites import find_sites

app = typer.Typer(
    help="Plasticity for fine-tuning Hugging Face audio models.", no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console()
CURVES = "results.png"

Format = enum.Enum("Format", {"asvspoof2019": "asvspoof2019", "folder": "folder"})  # type: ignore[misc]
Access = enum.Enum("Access", {"LA": "LA", "PA": "PA"})  # type: ignore[misc]
OnError = enum.Enum("OnError", {"raise": "raise", "skip": "skip"})  # type: ignore[misc]
DemoModel = enum.Enum("DemoModel", {name: name for name in MODELS})  # type: ignore[misc]
Method = enum.Enum("Method", {name: name for name in METHODS})  # type: ignore[misc]


@app.callback()
def _quiet() -> None:
    """Keeps the libraries' own progress bars and advice off the screen."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of four.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("neuroplastic-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of corpus, weights and training.")] = 0,
    model: Annotated[DemoModel, typer.Option(help="Architecture of the small model.")] = DemoModel.wav2vec2,  # type: ignore[attr-defined]
) -> None:
    """Write a corpus, fine-tune a small model on it with AdamW, NeuroPlastic, and NeuroPlastic + DropIn, and compare."""
    with _one_line_errors(), _bars() as report:
        runs = run_demo(output, model=model.value, quick=quick, seed=seed, report=report)
    _print_runs(runs)
    console.print(f"[dim]{RESULTS}, {PICTURE} and the fine-tuned model are in[/] {escape(str(output))}")


@app.command()
def train(
    model: Annotated[str, typer.Option(help="Hub id or folder of a pretrained audio model.")],
    data: Annotated[Path, typer.Option(help="Folder of the corpus.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    format: Annotated[Format, typer.Option(help="Layout of the corpus.")] = Format.asvspoof2019,  # type: ignore[attr-defined]
    access: Annotated[Access, typer.Option(help="Part of ASVspoof 2019.")] = Access.LA,  # type: ignore[attr-defined]
    method: Annotated[Method, typer.Option(help="Optimizer, alone or with DropIn.")] = Method["neuroplastic+dropin"],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Per device.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longer audio is cropped to this.")] = 4.0,
    on_error: Annotated[OnError, typer.Option(help="Corrupt or empty audio files: refuse, or leave out.")] = OnError[
        "raise"
    ],
    freeze_feature_encoder: Annotated[bool, typer.Option(help="Keep the convolutional front end as it is.")] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that check and load audio; 0 for this one.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint in the output.")
    ] = False,
) -> None:
    """Fine-tune MODEL on your own data (splits train and eval) and report the equal error rate."""
    with _one_line_errors(), _bars() as report:
        if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(
                f"{output} is not empty; choose another --output, or --resume an interrupted training"
            )
        event_interval = max(1, min(100, steps // 20))
        settings = Settings(
            steps=steps, batch_size=batch_size, learning_rate=learning_rate, max_seconds=max_seconds, seed=seed,
            workers=workers, dropin=DropInConfig(interval=event_interval, maturity=event_interval),
        )  # fmt: skip
        train_data, evaluation = (
            keep_readable(
                _load_data(data, format.value, access.value, split), on_error=on_error.value, num_proc=workers or None
            )
            for split in ("train", "eval")
        )
        network, extractor = _load_model(model, freeze_feature_encoder)
        run = fine_tune(
            network, extractor, train_data, evaluation, method.value, settings,
            output=output, resume=resume, progress=lambda done, total: report(method.value, done, total),
        )  # fmt: skip
        _save_model(network, extractor, output / "model", base=model, method=method.value)
        draw_runs([run], output / CURVES)
        config = {"model": model, "data": str(data), "format": format.value, "steps": steps, "batch_size": batch_size,
                  "learning_rate": learning_rate, "max_seconds": max_seconds, "seed": seed,
                  "dropin": settings.dropin.to_dict()}  # fmt: skip
        write_results(output / RESULTS, [run], config)
    _print_runs([run])
    console.print(f"[dim]{RESULTS}, {CURVES} and the fine-tuned model are in[/] {escape(str(output))}")


@app.command()
def inspect(model: Annotated[str, typer.Argument(help="Hub id or folder of a model.")]) -> None:
    """List the feed-forward layers of MODEL that DropIn can watch. Reads its configuration only, no weights."""
    with _one_line_errors():
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            classifies = type(config) in AutoModelForAudioClassification._model_mapping
            network = (AutoModelForAudioClassification if classifies else AutoModel).from_config(config)
        sites = find_sites(network)
        if not sites:
            raise ValueError(f"{type(network).__name__} has no feed-forward layer that DropIn knows")
    table = Table(title=f"{type(network).__name__}: {len(sites)} sites")
    for heading in ("index", "site", "inputs", "neurons", "activation"):
        table.add_column(heading, overflow="fold")
    for index, site in enumerate(sites):
        table.add_row(str(index), site.name, str(site.inputs), str(site.width), type(site.activation).__name__)
    console.print(table)


def _load_data(folder: Path, layout: str, access: Any, split: Any):
    return load_folder(folder, split) if layout == "folder" else load_asvspoof2019(folder, access, split)


def _load_model(name: str, freeze_feature_encoder: bool) -> tuple[Any, Any]:
    extractor = AutoFeatureExtractor.from_pretrained(name)
    model = AutoModelForAudioClassification.from_pretrained(name, **label_settings(), ignore_mismatched_sizes=True)
    if freeze_feature_encoder and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    return model, extractor


def _save_model(model: Any, extractor: Any, folder: Path, *, base: str, method: str) -> None:
    """As `from_pretrained` and the Hub want it; the card's tag is for models that this package's methods have trained."""
    if method == "adamw":
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        return
    on_hub = {} if Path(base).exists() else {"base_model": base}
    save_for_hub(model, folder, processor=extractor, metadata={"pipeline_tag": "audio-classification", **on_hub})


def _print_runs(runs: list[Run]) -> None:
    table = Table(title="fine-tuned")
    for heading in ("method", "EER (%)", "training time (s)", "neurons replaced"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for run in runs:
        table.add_row(run.name, f"{100 * run.eer:.1f}", f"{run.seconds:.1f}", str(run.neurons_replaced))
    console.print(table)


@contextlib.contextmanager
def _bars() -> Iterator[Any]:
    """report(stage, done, total): a progress bar per stage."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console) as bars:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can put right is said in one line, with exit code 2; anything else is a bug and shows its traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, TypeError, SafetensorError) as error:
        if os.environ.get("HF_NEUROPLASTIC_DEBUG"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        Console(stderr=True).print(
            f"[red]error:[/] {escape(' '.join(lines)) or type(error).__name__}", soft_wrap=True, markup=True
        )
        raise typer.Exit(2) from None
