"""hf-neuroplastic inspect."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.table import Table
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

from ..neurons.sites import find_sites
from .console import console, one_line_errors


def inspect(model: Annotated[str, typer.Argument(help="Hub id or folder of a model.")]) -> None:
    """List the feed-forward layers of MODEL that DropIn can watch. Reads its configuration only, no weights."""
    with one_line_errors():
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
