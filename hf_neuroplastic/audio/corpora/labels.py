"""What published detectors and corpora call bona fide and spoofed speech."""

from __future__ import annotations

import re

REAL = ("real", "bonafide", "genuine", "human", "authentic", "original", "natural", "live")
FAKE = (
    "fake",
    "spoof",
    "spoofed",
    "deepfake",
    "synthetic",
    "generated",
    "aigenerated",
    "ai",
    "aivoice",
    "cloned",
    "forged",
)
WORDS = {"bonafide": REAL, "spoof": FAKE}  # without case, spaces and marks


def meaning(name: str) -> str | None:
    """The label of `LABELS` that a name stands for; None where the name says nothing, such as LABEL_0."""
    return next((label for label, words in WORDS.items() if bare(name) in words), None)


def bare(name: str) -> str:
    """The letters of a name, in lower case."""
    return re.sub(r"[^a-z]", "", str(name).lower())
