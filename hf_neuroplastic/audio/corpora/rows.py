"""What a row of every dataset here is: `audio` (a path, never decoded by datasets), `label`, and columns of text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Audio, ClassLabel, Dataset, Features, Value

from ..decoding import AudioDecodingError, Waveform, check, decode, load_window, window_of

LABELS = ("bonafide", "spoof")  # the order of class ids, model heads and logits
OnError = Literal["raise", "skip"]

logger = logging.getLogger(__name__)


def audio_dataset(
    paths: Sequence[Path],
    labels: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    *,
    on_error: OnError | None = None,
) -> Dataset:
    """Dataset of audio paths, labels out of `LABELS` and further text columns, all of one length.

    `on_error` None reads no audio; else the files are checked as in `keep_readable`.
    """
    # Strings first, then a cast: encoding rows as Audio would ask for torchcodec even when nothing is decoded.
    features = {"audio": Value("string"), "label": ClassLabel(names=list(LABELS))}
    dataset = Dataset.from_dict(
        {"audio": [str(path) for path in paths], "label": list(labels), **columns},
        features=Features({**features, **{name: Value("string") for name in columns}}),
    ).cast_column("audio", Audio(decode=False))
    return dataset if on_error is None else keep_readable(dataset, on_error=on_error)


def decode_row(audio: Mapping[str, Any] | str) -> tuple[Waveform, int]:
    """Samples [n] and rate in Hz of an `Audio(decode=False)` value, {"path": ..., "bytes": ...}, of a decoded one, {"array":
    ..., "sampling_rate": ...}, or of a path; raises as `decode`."""
    decoded, source, name = _forms(audio)
    return decoded or decode(source, name=name)


def window_of_row(
    audio: Mapping[str, Any] | str, sampling_rate: int, length: int, place: Callable[[int], int]
) -> Waveform:
    """As `load_window`, of the values that `decode_row` takes."""
    decoded, source, name = _forms(audio)
    if decoded is None:
        return load_window(source, sampling_rate, length, place, name=name)
    samples, rate = decoded
    return window_of(lambda start, stop: samples[start:stop], len(samples), rate, sampling_rate, length, place)


def _forms(audio: Mapping[str, Any] | str) -> tuple[tuple[Waveform, int] | None, str | bytes, str | None]:
    """Decoded samples and rate, or None; what to decode; its name."""
    if isinstance(audio, str):
        return None, audio, None
    if audio.get("array") is not None:
        return (np.asarray(audio["array"], dtype=np.float32), int(audio["sampling_rate"])), "", None
    content = audio.get("bytes")
    return None, audio["path"] if content is None else content, audio.get("path")


def keep_readable(dataset: Dataset, *, on_error: OnError = "raise", num_proc: int | None = None) -> Dataset:
    """Decode every file of the column `audio` once, under datasets' progress bar, and return the rows whose file is
    sound.

    Args:
        dataset: rows with `audio` as `Audio(decode=False)`.
        on_error: "raise" refuses the dataset if a file is unreadable, "skip" leaves such rows out; both name the files.
        num_proc: processes that decode.

    Raises:
        AudioDecodingError: unreadable files with on_error="raise", or no readable one at all.
        ValueError: another on_error.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}.")
    faults = dataset.map(
        _fault,
        input_columns="audio",
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        desc="Checking audio files",
        load_from_cache_file=False,  # files change while paths stay
    )["fault"]
    broken = [fault for fault in faults if fault]
    if not broken:
        return dataset
    listing = "\n  ".join(broken)
    if on_error == "raise" or len(broken) == len(dataset):
        raise AudioDecodingError(
            f"{len(broken)} of {len(dataset)} audio files are unreadable; repair them, or leave them out by "
            f"on_error='skip':\n  {listing}"
        )
    logger.warning("Skipped %d of %d audio files that are unreadable:\n  %s", len(broken), len(dataset), listing)
    return dataset.select([index for index, fault in enumerate(faults) if not fault])


def _fault(audio: Mapping[str, Any]) -> dict[str, str]:
    try:
        decode_row(audio)
    except (AudioDecodingError, FileNotFoundError) as error:
        return {"fault": str(error)}
    return {"fault": ""}
