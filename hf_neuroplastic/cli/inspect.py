"""hf-neuroplastic inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import one_line_errors


def inspect(model: Annotated[str, typer.Argument(help="Hub id or folder of a model.")]) -> None:
    """List the feed-forward layers of MODEL that DropIn can watch. Reads its configuration only, no weights."""
    with one_line_errors():
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
