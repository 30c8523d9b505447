"""hf-neuroplastic inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import bars, one_line_errors, quiet
from .loading import DEFAULTS


def inspect(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model.")],
    data: Annotated[
        str | None,
        typer.Option(help="Folder or table of a corpus: tells which neurons are dead, weak and strong on it."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the corpus.")] = "dev",
    most: Annotated[int, typer.Option(min=1, help="Recordings that are looked at, drawn at random.")] = 500,
) -> None:
    """List the feed-forward layers of MODEL that DropIn can watch, and with --data how their neurons fare."""
    with one_line_errors():
        if data is None:
            _list_sites(model)
        else:
            _inspect_neurons(model, data, split, most)


def _inspect_neurons(model: str, data: str, split: str, most: int) -> None:
    from functools import partial

    from ..audio.detector import load_detector, read_window
    from ..audio.inspection import inspect_neurons
    from .loading import load_splits
    from .tables import print_table

    quiet()
    network, extractor = load_detector(model)
    with bars() as report:
        rows = load_splits({**DEFAULTS, "data": data}, (split,), 0, report)[split].shuffle(seed=0)
        rows = rows.select(range(min(most, len(rows))))
        seconds = read_window(Path(model), extractor).seconds
        found = inspect_neurons(network, extractor, rows, seconds, progress=partial(report, "listening"))
    print_table(
        f"{model} on {len(rows)} recordings", [{name: str(value) for name, value in row.items()} for row in found]
    )


def _list_sites(model: str) -> None:
    """Reads the configuration only, no weights."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

    from ..neurons.sites import find_sites
    from .tables import print_table

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        classifies = type(config) in AutoModelForAudioClassification._model_mapping
        network = (AutoModelForAudioClassification if classifies else AutoModel).from_config(config)
    sites = find_sites(network)
    if not sites:
        raise ValueError(f"{type(network).__name__} has no feed-forward layer that DropIn knows")
    rows = [
        {
            "site": site.name,
            "index": str(index),
            "inputs": str(site.inputs),
            "neurons": str(site.width),
            "activation": type(site.activation).__name__,
        }
        for index, site in enumerate(sites)
    ]
    print_table(f"{type(network).__name__}: {len(sites)} sites", rows)
