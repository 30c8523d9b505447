"""Which weights of a detector learn: all, some layers, the head alone, or low-rank adapters."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..neurons.operate.adapter_base import only_new_neurons

HEADS = ("classifier", "projector", "layer_weights", "layernorm_classifier")  # of transformers' audio classifiers
FRONT = ("feature_extractor", "embeddings", "conv1", "conv2", "feature_projection")


def freeze(model: nn.Module, what: str, growing: int | str | Sequence[int | str] | None = None) -> None:
    """Lets the weights that `what` names keep their values; see `Recipe.freeze`. growing: layers for new neurons.

    Raises:
        ValueError: a model without the part that is named, or with fewer layers.
    """
    if what == "nothing":
        return
    if what == "features":
        freeze_features = getattr(model, "freeze_feature_encoder", None)
        if freeze_features is not None:  # others, such as AST, have no convolutional front end
            freeze_features()
        return
    head = head_of(model)
    if what in ("base", "existing"):
        only_new_neurons(model, layers=growing, modules=sorted(head) if what == "base" else ())
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in head)
    if what != "all":
        kind, _, count = what.partition(":")
        layers = encoder_layers(model)
        if int(count) > len(layers):
            raise ValueError(f"freeze={what!r} names more layers than {type(model).__name__} has, {len(layers)}")
        for layer in layers[: int(count)] if kind == "first" else layers[-int(count) :]:
            layer.requires_grad_(True)


def head_of(model: nn.Module) -> set[str]:
    """Names of the children that are the classifier."""
    named = {name for name, _ in model.named_children() if name in HEADS}
    named |= {name for name, _ in model.named_parameters(recurse=False) if name in HEADS}
    if not named:
        raise ValueError(
            f"{type(model).__name__} has no part named {' or '.join(HEADS)}: freeze by hand, or take freeze='nothing'"
        )
    return named


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers, first to last: the longest ModuleList outside the front end and the decoder."""
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not {*FRONT, "decoder"} & set(name.split("."))
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers; take freeze='nothing', 'features' or 'all'")
    return max(map(list, lists), key=len)


def with_lora(model: Any, rank: int) -> Any:
    """The model with low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all Linear layers of the encoder; its head learns.

    Raises:
        ImportError: PEFT is not installed.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    head = sorted(head_of(model))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.partition(".")[0] not in head
    ]
    pattern = "|".join(map(re.escape, linear))
    modules = [name for name in head if isinstance(getattr(model, name), nn.Module)]
    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=pattern, modules_to_save=modules),
    )


def require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ImportError('lora needs PEFT: pip install "hf-neuroplastic[lora]"', name="peft")


def merged(model: Any) -> Any:
    """A plain model: adapters are added into the weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
