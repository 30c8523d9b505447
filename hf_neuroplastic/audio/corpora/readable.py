"""Which audio files of a corpus can be read: every file decoded once, and remembered until the file changes."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from huggingface_hub.constants import HF_HOME

from ..decoding import AudioDecodingError, check
from .rows import OnError, check_on_error, source_of

MEMORY = Path(HF_HOME) / "neuroplastic" / "checked.sqlite"
AT_A_TIME = 256  # files
logger = logging.getLogger(__name__)


class Checked(NamedTuple):
    """What is known of a file: what is wrong with its audio, or "", a digest of its content, and its seconds."""

    fault: str
    digest: str
    seconds: float


def keep_readable(
    dataset: Dataset,
    *,
    on_error: OnError = "raise",
    workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
    memory: Path | None = MEMORY,
) -> Dataset:
    """The rows whose audio can be decoded, with the columns `digest`, equal for files of equal content, and `seconds`.

    Args:
        dataset: rows with `audio` as `Audio(decode=False)`.
        on_error: "raise" refuses the dataset if a file is unreadable, "skip" leaves such rows out; both name the files.
        workers: threads that decode, at least one.
        progress: called as progress(done, files).
        memory: file that remembers what was found until a file's size or time changes; None remembers nothing.

    Raises:
        AudioDecodingError: unreadable files with on_error="raise", or no readable one at all.
        ValueError: another on_error.
    """
    check_on_error(on_error)
    rows = [row["audio"] for row in dataset.select_columns("audio").with_format(None)]
    found = list(_remembered(rows, workers, progress, memory))
    broken = [each.fault for each in found if each.fault]
    if broken and (on_error == "raise" or len(broken) == len(rows)):
        raise AudioDecodingError(
            f"{len(broken)} of {len(rows)} audio files are unreadable; repair them, or leave them out by "
            f"on_error='skip':\n  {_listing(broken)}"
        )
    if broken:
        logger.warning(
            "Skipped %d of %d audio files that are unreadable:\n  %s", len(broken), len(rows), _listing(broken)
        )
    kept = np.flatnonzero([not each.fault for each in found])
    readable = dataset if not broken else dataset.select(kept)
    readable = readable.remove_columns([name for name in ("digest", "seconds") if name in readable.column_names])
    readable = readable.add_column("digest", [found[index].digest for index in kept])
    return readable.add_column("seconds", [found[index].seconds for index in kept])


def _listing(faults: Sequence[str], most: int = 50) -> str:
    rest = [f"and {len(faults) - most} others"] if len(faults) > most else []
    return "\n  ".join([*faults[:most], *rest])


def _remembered(
    rows: Sequence[Any], workers: int, progress: Callable[[int, int], object] | None, memory: Path | None
) -> Iterator[Checked]:
    """What is known of each row, in order; new findings are written every `AT_A_TIME` files."""
    with ThreadPoolExecutor(max(1, workers)) as pool, closing(_database(memory)) as database:
        for start in range(0, len(rows), AT_A_TIME):
            part = rows[start : start + AT_A_TIME]
            identities = [_identity(row) for row in part]
            found = [_recalled(database, identity) for identity in identities]
            new = [index for index, known in enumerate(found) if known is None]
            for index, seen in zip(new, pool.map(_look, [part[index] for index in new]), strict=True):
                found[index] = seen
            written = [(*identities[index], *found[index]) for index in new if identities[index]]  # type: ignore[misc]
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", written)
            database.commit()
            yield from found  # type: ignore[misc]
            if progress is not None:
                progress(min(start + AT_A_TIME, len(rows)), len(rows))


def _look(audio: Any) -> Checked:
    source, name = source_of(audio)
    try:
        seconds = check(source, name=name)
    except (AudioDecodingError, FileNotFoundError) as error:
        return Checked(str(error), "", 0.0)
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, bytes):
        digest.update(source)
    else:
        with open(source, "rb") as file:
            while content := file.read(1 << 20):
                digest.update(content)
    return Checked("", digest.hexdigest(), seconds)


def _identity(audio: Any) -> tuple[str, int, int] | None:
    """Path, size and time of a file; None of a row that is no file."""
    source, _ = source_of(audio)
    if isinstance(source, bytes):
        return None
    try:
        status = os.stat(source)
    except OSError:
        return None
    return os.path.abspath(source), status.st_size, status.st_mtime_ns


def _database(memory: Path | None) -> sqlite3.Connection:
    """The memory; an empty one where there is none to be had, which is said."""
    try:
        if memory is not None:
            memory.parent.mkdir(parents=True, exist_ok=True)
            return _with_table(sqlite3.connect(memory, timeout=60))
    except (OSError, sqlite3.Error) as error:
        logger.warning("%s cannot remember which files are sound (%s): all are read", memory, error)
    return _with_table(sqlite3.connect(":memory:"))


def _with_table(database: sqlite3.Connection) -> sqlite3.Connection:
    database.execute(
        "CREATE TABLE IF NOT EXISTS files"
        " (path TEXT PRIMARY KEY, size INTEGER, time INTEGER, fault TEXT, digest TEXT, seconds REAL)"
    )
    return database


def _recalled(database: sqlite3.Connection, identity: tuple[str, int, int] | None) -> Checked | None:
    asked = "SELECT fault, digest, seconds FROM files WHERE path = ? AND size = ? AND time = ?"
    found = None if identity is None else database.execute(asked, identity).fetchone()
    return None if found is None else Checked(*found)
