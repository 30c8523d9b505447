"""Scoring recordings with a detector."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from .collator import SHORTEST, AudioCollator, Augment
from .corpora.rows import LABELS, duration_of_row
from .detector import longest_window, shortest_window
from .metrics import equal_error_rate

LONGEST_PART, STEP = 30.0, 0.25  # seconds


@dataclass(frozen=True)
class Scores:
    """What a detector says of some recordings: the higher the score, the more bona fide.

    logits: [n, 2] in label order (bonafide, spoof). labels: [n], 0 or 1. files, attacks, conditions: [n] names. seconds: that
    scoring took, of which `waiting` were spent waiting for audio.
    """

    files: list[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    attacks: list[str]
    conditions: list[str]
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def scores(self) -> NDArray[np.float64]:
        """[n]: the log-odds of bona fide."""
        return bona_fide_scores(self.logits)

    @property
    def eer(self) -> float:
        """0 to 1."""
        return equal_error_rate(self.scores, self.labels)[0]

    @property
    def threshold(self) -> float:
        """The score at which the equal error rate is reached most nearly; finite."""
        threshold = equal_error_rate(self.scores, self.labels)[1]
        return threshold if np.isfinite(threshold) else float(self.scores.max()) + 1


def bona_fide_scores(logits: Any) -> NDArray[np.float64]:
    """[n] from logits [n, 2] in label order (bonafide, spoof): the log-odds of bona fide."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits[:, 0] - logits[:, 1]


def score(
    model: Any,
    feature_extractor: Any,
    rows: Dataset,
    seconds: float,
    *,
    full: bool = False,
    batch_size: int = 16,
    workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Scores:
    """Scores of every row, in the order of the rows; no score depends on the other rows of a batch.

    Args:
        rows: with `audio` and, where known, `label`, `attack` and `condition`.
        seconds: length of the window in the middle of a recording that is scored; shorter recordings are repeated.
        full: score whole recordings, see `parts_of`.
        batch_size: windows at a time. workers: processes that load audio. progress: called as progress(done, windows).
    """
    windows = windows_of(model, feature_extractor, rows, seconds, full=full, batch_size=batch_size, workers=workers)
    return score_windows(model, rows, windows, progress)


class Windows(NamedTuple):
    """What is scored: `owners`, by batch the row of each window; `batches`, an iterable of what the collator made of them."""

    owners: list[list[int]]
    batches: Iterable[Mapping[str, torch.Tensor]]


def windows_of(
    model: Any,
    feature_extractor: Any,
    rows: Dataset,
    seconds: float,
    *,
    full: bool = False,
    batch_size: int = 16,
    workers: int = 0,
) -> Windows:
    """The windows that `score` scores, read when they are asked for."""
    collator = scoring_collator(feature_extractor, seconds, full, model)
    audio = [row["audio"] for row in rows.select_columns("audio").with_format(None)]
    parts, batches = _batches(audio, feature_extractor, seconds, full, batch_size)
    items = [{"audio": audio[index], "part": part} for index, part in parts]
    loader: Any = DataLoader(items, batch_sampler=batches, collate_fn=collator, num_workers=workers)  # type: ignore[arg-type]
    return Windows([[parts[index][0] for index in chosen] for chosen in batches], loader)


@torch.inference_mode()
def score_windows(
    model: Any, rows: Dataset, windows: Windows, progress: Callable[[int, int], object] | None = None
) -> Scores:
    """`score` of windows that are there already, or that are read meanwhile."""
    model.eval()
    logits, count, done, waiting = np.zeros((len(rows), len(LABELS))), np.zeros(len(rows)), 0, 0.0
    total, loaded = sum(map(len, windows.owners)), iter(windows.batches)
    start = time.perf_counter()
    for owners in windows.owners:
        asked = time.perf_counter()
        batch = next(loaded)
        waiting += time.perf_counter() - asked
        np.add.at(logits, owners, model(**inputs_of(model, batch)).logits.double().cpu().numpy())
        np.add.at(count, owners, 1)
        done += len(owners)
        if progress is not None:
            progress(done, total)
    logits /= count[:, None]
    if not np.isfinite(logits).all():
        bad = np.flatnonzero(~np.isfinite(logits).all(1))
        raise ValueError(
            f"{len(bad)} of {len(rows)} recordings have scores that are no numbers, the first one {file_names(rows)[bad[0]]}: "
            "the model's weights are not finite, or float16 overflowed"
        )
    columns = rows.column_names
    unknown = ["-"] * len(rows)
    return Scores(
        file_names(rows),
        np.asarray(rows["label"] if "label" in columns else [-1] * len(rows)),
        logits,
        list(rows["attack"]) if "attack" in columns else unknown,
        list(rows["condition"]) if "condition" in columns else unknown,
        time.perf_counter() - start,
        waiting,
    )


Part = tuple[float, float]  # seconds, and the share of the way through the recording


def parts_of(duration: float, longest: float) -> list[Part]:
    """Equal windows, no longer than `longest` seconds, that cover a recording together; a score is the mean of theirs.

    Their length is rounded up to steps of `STEP`, to which a recording is repeated: recordings of about one length then are of
    one length, and a batch needs no padding, which would change the scores of models that do not mask padding everywhere.
    """
    count = math.ceil(duration / longest)
    length = min(longest, math.ceil(duration / count / STEP - 1e-9) * STEP)
    return [(length, index / max(1, count - 1)) for index in range(count)]


def longest_part(feature_extractor: Any, seconds: float) -> float:
    """Seconds of a whole recording that are scored in one piece: the trained window where the model's input has a fixed
    length, else enough for all but long recordings, whose attention would not fit into memory."""
    return seconds if longest_window(feature_extractor) is not None else max(seconds, LONGEST_PART)


def _batches(
    audio: Sequence[Any], feature_extractor: Any, seconds: float, full: bool, batch_size: int
) -> tuple[list[tuple[int, Part | None]], list[list[int]]]:
    """Windows as (row, part), and batches of their indices; all parts of a batch have one length."""
    if not full:
        return [(index, None) for index in range(len(audio))], _cut(range(len(audio)), batch_size)
    longest = longest_part(feature_extractor, seconds)
    parts = [(index, part) for index, each in enumerate(audio) for part in parts_of(duration_of_row(each), longest)]
    by_length = sorted(range(len(parts)), key=lambda index: parts[index][1][0])
    groups = groupby(by_length, key=lambda index: parts[index][1][0])
    return list(parts), [batch for _, group in groups for batch in _cut(list(group), batch_size)]


def _cut(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def taken_by(model: Any) -> set[str]:
    """Names of what the model's forward pass takes; of a model inside adapters, of its own."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)


def inputs_of(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model's forward pass takes of a batch, on its device, without labels."""
    device, taken = next(model.parameters()).device, taken_by(model) - {"labels"}
    return {name: value.to(device) for name, value in batch.items() if name in taken}


def file_names(rows: Dataset) -> list[str]:
    """Name of each row: `file_name`, else the path."""
    if "file_name" in rows.column_names:
        return list(rows["file_name"])
    return [row["path"] for row in rows.with_format(None)["audio"]]


def window_collator(
    feature_extractor: Any,
    seconds: float | None,
    *,
    model: Any = None,
    seed: int | None = None,
    augment: Augment | None = None,
) -> AudioCollator:
    """Windows of `seconds`, in the middle or, with a seed, at random places; shorter recordings are repeated.

    seconds: None for whole recordings. model: repeat windows to what this model needs, too. augment: see `AudioCollator`.
    """
    needed = SHORTEST if model is None else shortest_window(model, feature_extractor.sampling_rate)
    # Whisper takes nothing but its own length.
    padding: Any = "max_length" if hasattr(feature_extractor, "n_samples") else True
    return AudioCollator(
        feature_extractor,
        seconds,
        seed is not None,
        max(needed, seconds or 0),
        padding,
        seed=seed or 0,
        augment=augment,
    )


def scoring_collator(feature_extractor: Any, seconds: float, full: bool, model: Any) -> AudioCollator:
    """Windows in the middle of recordings, or parts of whole ones, which are not repeated to the length of a window."""
    whole = full and longest_window(feature_extractor) is None
    return window_collator(feature_extractor, None if whole else seconds, model=model)
