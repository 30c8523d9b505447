"""What a row of every corpus here is.

audio      path of the file, never decoded by datasets
label      0 bonafide, 1 spoof
file_name  as the corpus names the file
attack     what made the speech; "-" for bona fide speech, and where the corpus does not tell
condition  codec, room or the like; "-" where the corpus does not tell
speaker    "-" where the corpus does not tell
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, DatasetInfo, Features, Value
from datasets.table import InMemoryTable

from ..decoding import Waveform, decode, duration, load_window, window_of

LABELS = ("bonafide", "spoof")  # the order of class ids, model heads and logits
OnError = Literal["raise", "skip"]


def audio_dataset(
    paths: Sequence[Path | str], labels: Sequence[str | int], columns: Mapping[str, Sequence[str]]
) -> Dataset:
    """Dataset of audio paths, labels out of `LABELS` and further text columns, all of one length. Reads no audio."""
    features = Features(
        {
            "audio": Audio(decode=False),
            "label": ClassLabel(names=list(LABELS)),
            **{name: Value("string") for name in columns},
        }
    )
    content = [pa.nulls(len(paths), pa.binary()), pa.array(map(str, paths), pa.string())]
    ids = [LABELS.index(label) if isinstance(label, str) else label for label in labels]
    # Arrow's own columns: Dataset.from_dict encodes value by value, which takes a minute for a million rows.
    table = {
        "audio": pa.StructArray.from_arrays(content, ["bytes", "path"]),
        "label": pa.array(ids, pa.int64()),
        **{name: pa.array(column, pa.string()) for name, column in columns.items()},
    }
    return Dataset(InMemoryTable(pa.table(table)), info=DatasetInfo(features=features))


def check_on_error(on_error: Any) -> None:
    if on_error not in (None, "raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}.")


def check_one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}.")


def decode_row(audio: Mapping[str, Any] | str) -> tuple[Waveform, int]:
    """Samples [n] and rate in Hz of an `Audio(decode=False)` value, {"path": ..., "bytes": ...}, of a decoded one, {"array":
    ..., "sampling_rate": ...}, or of a path; raises as `decode`."""
    decoded = _decoded(audio)
    if decoded is not None:
        return decoded
    source, name = source_of(audio)
    return decode(source, name=name)


def duration_of_row(audio: Mapping[str, Any] | str) -> float:
    """As `duration`, of the values that `decode_row` takes."""
    decoded = _decoded(audio)
    if decoded is not None:
        return len(decoded[0]) / decoded[1]
    source, name = source_of(audio)
    return duration(source, name=name)


def window_of_row(
    audio: Mapping[str, Any] | str, sampling_rate: int, length: int, place: Callable[[int], int]
) -> Waveform:
    """As `load_window`, of the values that `decode_row` takes."""
    decoded = _decoded(audio)
    if decoded is None:
        source, name = source_of(audio)
        return load_window(source, sampling_rate, length, place, name=name)
    samples, rate = decoded
    return window_of(lambda start, stop: samples[start:stop], len(samples), rate, sampling_rate, length, place)


def source_of(audio: Mapping[str, Any] | str) -> tuple[str | bytes, str | None]:
    """Path or content of a file, and its name where the name is known apart."""
    if isinstance(audio, str):
        return audio, None
    content = audio.get("bytes")
    return audio["path"] if content is None else content, audio.get("path")


def _decoded(audio: Mapping[str, Any] | str) -> tuple[Waveform, int] | None:
    if isinstance(audio, str) or audio.get("array") is None:
        return None
    return np.asarray(audio["array"], dtype=np.float32), int(audio["sampling_rate"])
