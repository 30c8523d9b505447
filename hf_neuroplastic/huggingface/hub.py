"""A folder that can be pushed to the Hub as it is: stock model files, and a model card that carries this package's tag."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..neurons.dropin import DropIn
from .checkpoint import INDEX_FILE, TENSOR_FILE, save_side_files

TAG = "hf-neuroplastic"
CARD = "README.md"


def tag_model(model: Any) -> None:
    """Marks a transformers model as trained with this package: `push_to_hub`, the model's and Trainer's, then says so."""
    if isinstance(model, PreTrainedModel):
        model.add_model_tags([TAG])


def save_for_hub(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    processor: Any = None,
    dropin: DropIn | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves a model that was trained with this package, with a model card whose tags say so.

    The folder holds what `model.save_pretrained` writes, and README.md. A card that is there already keeps its text, and its
    metadata but for what is given here.

    Args:
        processor: feature extractor, tokenizer or processor to be saved along.
        dropin: its neurons' state is saved along, for whoever goes on training, and summed up in the card.
        metadata: fields of the card (huggingface_hub.ModelCardData): license, language, base_model, datasets, pipeline_tag,
            ... Nothing is guessed but the library.

    Raises:
        TypeError: a model that is none of transformers', such as one wrapped for distributed training.
        ValueError: metadata that huggingface_hub refuses.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers.PreTrainedModel, got {type(model).__name__}; unwrap it first")
    folder, metadata = Path(folder), dict(metadata or {})
    tag_model(model)
    path = folder / CARD
    card = ModelCard.load(path) if path.is_file() else ModelCard(_new_card(model, dropin))
    held = {"library_name": "transformers", **card.data.to_dict()}
    named = metadata.pop("tags", ())
    tags = [*held.get("tags", ()), *([named] if isinstance(named, str) else named), *(model.model_tags or ())]
    card.data = ModelCardData(**{**held, **metadata, "tags": tags})
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    if dropin is not None:
        save_side_files(dropin, folder)
    card.save(path)


def _new_card(model: PreTrainedModel, dropin: DropIn | None) -> str:
    text = (
        f"---\nlibrary_name: transformers\n---\n\nTrained with `{TAG}`. The model is a plain `{type(model).__name__}` of "
        f"transformers; `from_pretrained` loads it without that package.\n"
    )
    if dropin is None:
        return text
    active = sum(int(known.active.sum()) for known in dropin.statistics)
    slots = sum(site.width for site in dropin.sites)
    replaced = sum(int(count) for count in dropin.replaced)
    return (
        f"{text}\nAfter {dropin.step_count} steps with neurons watched, {active} of {slots} neurons in {len(dropin.sites)} "
        f"layers are active, and {replaced} have been replaced. `{TENSOR_FILE}` and `{INDEX_FILE}` hold what further training "
        f"of these neurons goes by; to load the model they are not needed.\n"
    )
