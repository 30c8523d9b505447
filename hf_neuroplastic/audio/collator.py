"""From dataset rows to model inputs: decode, resample, crop, extract features, pad."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .corpora.rows import decode_row
from .decoding import Waveform, resample


@dataclass
class AudioCollator:
    """Data collator for Trainer: rows with `audio` (and `label`) to the tensors an audio classifier takes.

    Set `remove_unused_columns=False` in TrainingArguments, or Trainer drops `audio` before it comes here.

    Output: `input_values` [B, samples] (wav2vec2 and kin) or what else the feature extractor makes, such as
    [B, frames, mel bins] for AST; `attention_mask` [B, samples] wherever the extractor makes one: pooling and
    neuron statistics must not count padding (also for models trained without, such as wav2vec2-base, whose
    convolutions see the same zeros either way); `labels` [B] if every row has `label`.

    Args:
        feature_extractor: a Hugging Face audio feature extractor; its `sampling_rate` decides the rate.
        max_seconds: crop longer audio to this; None keeps all of it.
        min_seconds: shorter audio, and shorter windows, are repeated to this length; the default holds a window of every
            common front end.
        random_crop: crop at a random place (training) instead of the centre (evaluation).
        seed, epoch: the place depends on these and on the recording alone: not on the order, on workers, or on a resumption.
            Change `epoch` from epoch to epoch.
        padding: handed to the extractor: True pads to the longest of the batch, "max_length" to the extractor's own
            length.

    Raises, when called: KeyError if rows lack `audio`, FileNotFoundError and AudioDecodingError as `decode`.
    """

    feature_extractor: Any
    max_seconds: float | None = None
    random_crop: bool = False
    min_seconds: float = 0.1
    padding: bool | str = True
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        for name, seconds in (("max_seconds", self.max_seconds), ("min_seconds", self.min_seconds)):
            if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < float("inf")):
                allowed = "positive, or None for no crop" if name == "max_seconds" else "positive"
                raise ValueError(f"{name} must be {allowed}, got {seconds!r}.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("rows must hold at least one row, got none.")
        if any("audio" not in row for row in rows):
            raise KeyError(
                f"rows need the column 'audio', got {sorted(rows[0])}; "
                "set remove_unused_columns=False in TrainingArguments."
            )
        rate = self.feature_extractor.sampling_rate
        waveforms = [self._crop(resample(*decode_row(row["audio"]), rate), rate, row["audio"]) for row in rows]
        batch = dict(
            self.feature_extractor(
                waveforms, sampling_rate=rate, padding=self.padding, return_attention_mask=True, return_tensors="pt"
            )
        )
        labelled = sum("label" in row for row in rows)
        if labelled not in (0, len(rows)):
            raise ValueError(f"rows must all have a label or none, got {labelled} of {len(rows)} with one.")
        if labelled:
            batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=torch.long)
        return batch

    def _crop(self, samples: Waveform, rate: int, audio: Any) -> Waveform:
        shortest = max(1, round(self.min_seconds * rate))
        length = samples.shape[0] if self.max_seconds is None else max(1, round(self.max_seconds * rate))
        spare = samples.shape[0] - length
        if spare > 0:
            start = int(self._rng(samples, audio).integers(spare + 1)) if self.random_crop else spare // 2
            samples = samples[start : start + length]
        return np.resize(samples, shortest) if samples.shape[0] < shortest else samples

    def _rng(self, samples: Waveform, audio: Any) -> np.random.Generator:
        """The random numbers of one recording in one epoch."""
        path = audio if isinstance(audio, str) else audio.get("path")
        recording = zlib.crc32(samples.tobytes() if path is None else os.fsencode(path))
        return np.random.default_rng((self.seed, self.epoch, recording))
