"""Loading a detector: an audio classifier of bona fide and spoofed speech."""

from __future__ import annotations

from typing import Any

from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from .corpora.rows import LABELS


def label_settings() -> dict[str, Any]:
    """What a classifier of bona fide and spoofed speech has in its configuration."""
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {n: i for i, n in enumerate(LABELS)},
    }


def load_detector(name: str) -> tuple[Any, Any]:
    """The model, in float32, and its feature extractor, of a Hub id or a folder."""
    extractor = AutoFeatureExtractor.from_pretrained(name)
    model = AutoModelForAudioClassification.from_pretrained(
        name, **label_settings(), ignore_mismatched_sizes=True, dtype="float32"
    )
    return model, extractor
