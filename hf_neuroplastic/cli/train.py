"""hf-neuroplastic train."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ..audio import keep_readable, load_asvspoof2019, load_folder
from ..audio.demo import RESULTS, label_settings, write_results
from ..audio.figures import draw_runs
from ..audio.training import METHODS, Settings, fine_tune
from ..huggingface.hub import save_for_hub
from ..neurons.config import DropInConfig
from .console import bars, console, one_line_errors, print_runs

CURVES = "results.png"
Format = enum.Enum("Format", {"asvspoof2019": "asvspoof2019", "folder": "folder"})  # type: ignore[misc]
Access = enum.Enum("Access", {"LA": "LA", "PA": "PA"})  # type: ignore[misc]
OnError = enum.Enum("OnError", {"raise": "raise", "skip": "skip"})  # type: ignore[misc]
Method = enum.Enum("Method", {name: name for name in METHODS})  # type: ignore[misc]


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
    with one_line_errors(), bars() as report:
        if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(
                f"{output} is not empty; choose another --output, or --resume an interrupted training"
            )
        event_interval = max(1, min(100, steps // 20))
        settings = Settings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_seconds=max_seconds,
            seed=seed,
            workers=workers,
            dropin=DropInConfig(interval=event_interval, maturity=event_interval),
        )
        train_data, evaluation = (
            keep_readable(
                _load_data(data, format.value, access.value, split), on_error=on_error.value, num_proc=workers or None
            )
            for split in ("train", "eval")
        )
        network, extractor = _load_model(model, freeze_feature_encoder)
        run = fine_tune(
            network,
            extractor,
            train_data,
            evaluation,
            method.value,
            settings,
            output=output,
            resume=resume,
            progress=lambda done, total: report(method.value, done, total),
        )
        _save_model(network, extractor, output / "model", base=model, method=method.value)
        draw_runs([run], output / CURVES)
        config = {
            "model": model,
            "data": str(data),
            "format": format.value,
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_seconds": max_seconds,
            "seed": seed,
            "dropin": settings.dropin.to_dict(),
        }
        write_results(output / RESULTS, [run], config)
    print_runs([run])
    console.print(f"[dim]{RESULTS}, {CURVES} and the fine-tuned model are in[/] {escape(str(output))}")


def _load_data(folder: Path, layout: str, access: Any, split: Any) -> Any:
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
