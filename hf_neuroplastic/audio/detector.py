"""Loading a detector: an audio classifier of bona fide and spoofed speech, whatever it calls the two."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification

from .corpora.labels import meaning
from .corpora.rows import LABELS
from .detector_file import DetectorFile, read_detector
from .trainable import head_of

logger = logging.getLogger(__name__)


def label_settings() -> dict[str, Any]:
    """What a classifier of bona fide and spoofed speech has in its configuration."""
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {n: i for i, n in enumerate(LABELS)},
    }


def load_detector(name: str) -> tuple[Any, Any]:
    """A model of two classes in the order of `LABELS`, in float32, and its feature extractor, from a Hub id or a folder.

    A head of two classes whose names say which is bona fide (`corpora.labels`) is kept, and turned where its order is the other
    one. A head of other classes, or of names that say nothing, is replaced by a new one, which is said.

    Raises:
        OSError: no such model. ValueError: a checkpoint without weights for parts of the encoder, such as one whose keys have
        other names.
    """
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
        published = AutoConfig.from_pretrained(name)
    except OSError as error:
        if Path(name).is_dir():
            raise
        offline = "HF_HUB_OFFLINE is set, and it is not in the cache" if HF_HUB_OFFLINE else "the Hub did not give it"
        raise OSError(
            f"{name} is no folder, and no audio model that can be had from the Hub: {offline} ({str(error).splitlines()[0]}); "
            "give a folder that holds a model and its preprocessor_config.json, or go online"
        ) from error
    names = [published.id2label[index] for index in sorted(published.id2label)]
    model, info = AutoModelForAudioClassification.from_pretrained(
        name,
        **label_settings(),
        output_hidden_states=False,
        output_attentions=False,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    head = head_of(model)
    require_encoder(name, info, head, len(list(model.parameters())))
    lost = {key.partition(".")[0] for key in (*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"]))}
    stored = stored_head(published)
    if head & lost:
        logger.info("%s has no head for bona fide and spoofed speech: a new one begins", name)
    elif stored == "turned":
        turn(model, head)
        logger.warning("%s calls its classes %s: its head is turned into the order %s", name, names, list(LABELS))
    elif stored == "new":
        for module in (each for part in head for each in getattr(model, part).modules()):
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
        logger.warning("%s calls its classes %s, which does not say which is bona fide: a new head begins", name, names)
    return model, extractor


def stored_head(config: Any) -> str:
    """What `load_detector` does with the head of a checkpoint of this configuration: "kept", "turned", or "new"."""
    meanings = [meaning(config.id2label[index]) for index in sorted(config.id2label)]
    return "kept" if meanings == list(LABELS) else "turned" if meanings == list(reversed(LABELS)) else "new"


def require_encoder(name: str, info: Mapping[str, Any], head: set[str], tensors: int) -> None:
    """Raises ValueError where the weights of the encoder would be random."""
    missing = sorted(
        key for key in info["missing_keys"] if key.partition(".")[0] not in head and "masked_spec_embed" not in key
    )
    if missing:
        others = sorted(info["unexpected_keys"])
        hint = f", and has {len(others)} others, such as {others[0]!r}: rename its keys" if others else ""
        raise ValueError(
            f"{name} lacks {len(missing)} of {tensors} tensors of the model, such as {missing[0]!r}{hint}; training would "
            "start from random weights"
        )


@torch.no_grad()
def turn(model: nn.Module, head: set[str]) -> None:
    """Exchanges the two classes of a classifier."""
    modules = [module for part in sorted(head) for module in getattr(model, part).modules()]
    last = [module for module in modules if isinstance(module, nn.Linear) and module.out_features == len(LABELS)]
    if len(last) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(last)} layers of two outputs in its head: its classes cannot be turned"
        )
    for parameter in last[0].parameters():
        parameter.copy_(parameter.flip(0))


def shortest_window(model: Any, sampling_rate: int) -> float:
    """Seconds of audio that the model needs: for its convolutions, and for the masks of SpecAugment in training."""
    lengths = getattr(model, "_get_feat_extract_output_lengths", None)
    if lengths is None:
        return 0.1
    config = model.config
    masked = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0) > 0
    frames = max(2, config.mask_time_length if masked else 0)
    samples = 1
    while int(lengths(torch.tensor(samples))) < frames:
        samples += max(1, sampling_rate // 200)
    return samples / sampling_rate


def longest_window(feature_extractor: Any) -> float | None:
    """Seconds of audio that an extractor of fixed length takes, such as AST's or Whisper's; None of others."""
    samples = getattr(feature_extractor, "n_samples", None)
    if samples is not None:
        return samples / feature_extractor.sampling_rate
    frames = getattr(feature_extractor, "max_length", None)  # of 25 ms, every 10 ms
    return None if frames is None else frames * 0.01 + 0.015


def read_window(folder: Path, feature_extractor: Any) -> DetectorFile:
    """What stands beside the weights in `folder`; of a model without such a file, a window that its extractor does not cut."""
    read, longest = read_detector(folder), longest_window(feature_extractor)
    return read if longest is None else replace(read, seconds=min(read.seconds, longest))


def require_window(seconds: float, feature_extractor: Any) -> None:
    """Raises ValueError where the extractor would cut the windows."""
    longest = longest_window(feature_extractor)
    if longest is not None and seconds > longest:
        raise ValueError(
            f"seconds must be at most {longest:g}, which is all that {type(feature_extractor).__name__} takes of a recording; "
            f"got {seconds:g}"
        )
