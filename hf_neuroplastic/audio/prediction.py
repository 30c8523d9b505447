"""Scores of recordings that nobody has labelled, a few at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from .collator import AudioCollator
from .corpora.folder import LeftOut, audio_files, audio_suffixes
from .corpora.rows import LABELS
from .decoding import AudioDecodingError, Waveform, duration
from .detector_file import DetectorFile
from .evaluation import bona_fide_scores, inputs_of, longest_part, parts_of, scoring_collator

COLUMNS = ("file", "score", "llr", "label")
Prediction = dict[str, Any]


def files_of(paths: Sequence[Path]) -> list[str]:
    """Files as they are named, and the audio files in folders at any depth, sorted; what is left out is counted in a warning.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without audio.
    """
    files: list[str] = []
    for path in paths:
        if path.is_dir():
            left_out = LeftOut()
            held = audio_files(path, left_out, "skip")
            left_out.tell(path)
            if not held:
                known = ", ".join(sorted(audio_suffixes()))
                raise FileNotFoundError(f"{path} holds no audio files, whose names end in {known}")
            files += held
        elif path.exists():
            files.append(str(path))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return files


@torch.inference_mode()
def predictions(
    model: Any,
    feature_extractor: Any,
    files: Iterable[str],
    detector: DetectorFile,
    threshold: float | None,
    unreadable: list[str],
    *,
    full: bool = False,
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """A row of `COLUMNS` per file, in the order of the files, as soon as its batch is scored; the scores are those of `score`.

    Args:
        threshold: bona fide from this log-likelihood ratio on; None for no labels.
        unreadable: filled with what was wrong with files that are left out.
        full: score whole recordings, not the window in their middle. batch_size: windows at a time.
    """
    model.eval()
    collator = scoring_collator(feature_extractor, detector.seconds, full, model)
    longest = longest_part(feature_extractor, detector.seconds) if full else None
    for batch in _readable(files, collator, longest, 1 if full else batch_size, unreadable):
        windows = [window for _, held in batch for window in held]
        logits = [
            model(**inputs_of(model, collator.features(windows[start : start + batch_size])))
            .logits.double()
            .cpu()
            .numpy()
            for start in range(0, len(windows), batch_size)
        ]
        ends = np.cumsum([len(held) for _, held in batch])[:-1]
        for (file, _), scores in zip(batch, np.split(bona_fide_scores(np.concatenate(logits)), ends), strict=True):
            llr = float(scores.mean()) - detector.log_prior_odds
            label = "" if threshold is None else LABELS[0 if llr >= threshold else 1]
            yield {"file": file, "score": float(scores.mean()), "llr": llr, "label": label}


def _readable(
    files: Iterable[str], collator: AudioCollator, longest: float | None, size: int, unreadable: list[str]
) -> Iterator[list[tuple[str, list[Waveform]]]]:
    """Files and their windows, `size` files at a time; of whole files, where `longest` is given, the parts."""
    batch = list[tuple[str, list[Waveform]]]()
    for file in files:
        try:
            parts = [None] if longest is None else parts_of(duration(file), longest)
            batch.append((file, [collator.window({"audio": file, "part": part}) for part in parts]))
        except (AudioDecodingError, OSError) as error:
            unreadable.append(str(error))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def writer(name: str) -> Callable[[TextIO, Iterable[Prediction]], None]:
    """What writes predictions as "csv" or "jsonl", each as it comes. Raises ValueError for another name."""
    if name not in ("csv", "jsonl"):
        raise ValueError(f"format must be csv or jsonl, got {name!r}")
    return write_csv if name == "csv" else write_jsonl


def write_csv(file: TextIO, found: Iterable[Prediction]) -> None:
    rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for row in found:
        rows.writerow(row)
        file.flush()


def write_jsonl(file: TextIO, found: Iterable[Prediction]) -> None:
    for row in found:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
