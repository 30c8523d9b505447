"""From dataset rows to model inputs: decode, resample, crop, augment, extract features, pad."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .corpora.rows import decode_row, window_of_row
from .decoding import Waveform, resample

Augment = Callable[[Waveform, int, np.random.Generator], Waveform]
SHORTEST = 0.1  # seconds


@dataclass
class AudioCollator:
    """Data collator for Trainer: rows with `audio` (and `label`) to the tensors an audio classifier takes.

    Set `remove_unused_columns=False` in TrainingArguments, or Trainer drops `audio` before it comes here.

    Output: `input_values` [B, samples] (wav2vec2 and kin) or what else the feature extractor makes, such as
    [B, frames, mel bins] for AST; `attention_mask` [B, samples] wherever the extractor makes one: pooling and
    neuron statistics must not count padding (also for models trained without, such as wav2vec2-base, whose
    convolutions see the same zeros either way); `labels` [B] if every row has `label`.

    A row may have `part`, (seconds, share): the window of so many seconds that lies this share of the way from the recording's
    beginning (0) to its end (1); a shorter recording is repeated.

    Args:
        feature_extractor: a Hugging Face audio feature extractor; its `sampling_rate` decides the rate.
        max_seconds: crop longer audio to this; None keeps all of it.
        min_seconds: shorter audio, and shorter windows, are repeated to this length. None takes `max_seconds`, so that all
            windows have one length and no score depends on its neighbours' padding; without `max_seconds`, .1 s, which holds
            a window of every common front end.
        random_crop: crop at a random place (training) instead of the centre (evaluation).
        seed, epoch: the place depends on these and on the file's name alone: not on folder, order, workers, or a resumption.
            Change `epoch` from epoch to epoch.
        padding: handed to the extractor: True pads to the longest of the batch, "max_length" to the extractor's own
            length.
        augment: called as augment(samples [n], rate, rng) -> samples [n] on every window, with random numbers that depend on
            `seed`, `epoch` and the recording alone; see hf_neuroplastic.audio.augment.

    Raises, when called: KeyError if rows lack `audio`, FileNotFoundError and AudioDecodingError as `decode`.
    """

    feature_extractor: Any
    max_seconds: float | None = None
    random_crop: bool = False
    min_seconds: float | None = None
    padding: bool | str = True
    seed: int = 0
    epoch: int = 0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("max_seconds", self.max_seconds), ("min_seconds", self.min_seconds)):
            if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < float("inf")):
                raise ValueError(f"{name} must be positive, or None, got {seconds!r}.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("rows must hold at least one row, got none.")
        if any("audio" not in row for row in rows):
            raise KeyError(
                f"rows need the column 'audio', got {sorted(rows[0])}; "
                "set remove_unused_columns=False in TrainingArguments."
            )
        batch = self.features([self.window(row) for row in rows])
        labelled = sum("label" in row for row in rows)
        if labelled not in (0, len(rows)):
            raise ValueError(f"rows must all have a label or none, got {labelled} of {len(rows)} with one.")
        if labelled:
            batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=torch.long)
        return batch

    def window(self, row: Mapping[str, Any]) -> Waveform:
        """Samples [n] of a row, at the extractor's rate: the window that `part` names, or the one that is drawn."""
        audio, rate = row["audio"], self.feature_extractor.sampling_rate
        rng = np.random.default_rng((self.seed, self.epoch, _recording(audio)))
        part = row.get("part")
        seconds, share = part or (self.max_seconds, None)
        shortest = max(self.min_seconds or self.max_seconds or SHORTEST, part[0] if part else 0.0)
        if seconds is None:
            samples = resample(*decode_row(audio), rate)
        else:
            length = max(1, round(seconds * rate))
            samples = window_of_row(audio, rate, length, lambda spare: self._place(spare, share, rng))
        if samples.shape[0] < (needed := max(1, round(shortest * rate))):
            samples = np.resize(samples, needed)
        return samples if self.augment is None else self.augment(samples, rate, rng)

    def features(self, waveforms: Sequence[Waveform]) -> dict[str, torch.Tensor]:
        """Model inputs of samples at the extractor's rate."""
        return dict(
            self.feature_extractor(
                waveforms,
                sampling_rate=self.feature_extractor.sampling_rate,
                padding=self.padding,
                return_attention_mask=True,
                return_tensors="pt",
            )
        )

    def _place(self, spare: int, share: float | None, rng: np.random.Generator) -> int:
        if share is not None:
            return round(share * spare)
        return int(rng.integers(spare + 1)) if self.random_crop else spare // 2


def _recording(audio: Any) -> int:
    """A number for a recording: of its file's name, wherever the corpus lies, else of its samples or content."""
    path = audio if isinstance(audio, str) else audio.get("path")
    if path is not None:
        return zlib.crc32(os.fsencode(os.path.basename(path)))
    return zlib.crc32(np.asarray(audio["array"]).tobytes() if audio.get("array") is not None else audio["bytes"])
