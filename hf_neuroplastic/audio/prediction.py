"""Scores of recordings that nobody has labelled, a few at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from .corpora.folder import LeftOut, audio_files, audio_suffixes
from .corpora.rows import LABELS
from .decoding import AudioDecodingError, decode
from .detector_file import DetectorFile
from .evaluation import bona_fide_scores, inputs_of, window_collator

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
    batch_size: int | None,
    unreadable: list[str],
) -> Iterator[Prediction]:
    """A row of `COLUMNS` per file, in the order of the files, as soon as its batch is scored.

    Args:
        threshold: bona fide from this log-likelihood ratio on; None for no labels.
        batch_size: windows at a time; None scores whole recordings, one at a time.
        unreadable: filled with what was wrong with files that are left out.
    """
    model.eval()
    collator = window_collator(feature_extractor, None if batch_size is None else detector.seconds, model=model)
    for batch in _readable(files, batch_size or 1, unreadable):
        scores = bona_fide_scores(model(**inputs_of(model, collator(batch))).logits.double().cpu().numpy())
        for row, score in zip(batch, scores, strict=True):
            llr = float(score) - detector.log_prior_odds
            label = "" if threshold is None else LABELS[0 if llr >= threshold else 1]
            yield {"file": row["path"], "score": float(score), "llr": llr, "label": label}


def _readable(files: Iterable[str], size: int, unreadable: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Decoded rows, `size` at a time."""
    batch: list[dict[str, Any]] = []
    for file in files:
        try:
            samples, rate = decode(file)
        except (AudioDecodingError, OSError) as error:
            unreadable.append(str(error))
            continue
        batch.append({"path": file, "audio": {"array": samples, "sampling_rate": rate}})
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
