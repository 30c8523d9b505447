"""Lists of utterances: lines of columns, and the audio files that the lines name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from datasets import Dataset

from .readable import keep_readable
from .rows import LABELS, OnError, audio_dataset

COLUMNS = ("file_name", "label", "attack", "condition", "speaker")
Columns = dict[str, list[str]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """Where a line of a protocol holds what; -1 where the corpus does not tell. `width` is the number of columns.

    example: a line, for messages.
    """

    width: int
    example: str
    file_name: int = 1
    label: int = 4
    attack: int = 3
    condition: int = 2
    speaker: int = 0


def read_protocol(
    path: Path, protocol: Protocol, on_error: OnError | None = None, keep: Callable[[list[str]], bool] | None = None
) -> Columns:
    """The columns of `COLUMNS` of a protocol's lines; bona fide speech has the attack "-".

    Args:
        on_error: "skip" leaves out lines that make no sense, and says how many and the first one; else they are refused.
        keep: which lines count; None counts all.

    Raises:
        ValueError: a line of another width, an unknown key, an attack beside bona fide speech or none beside spoofed, a file
            listed twice; no line at all.
    """
    columns: Columns = {name: [] for name in COLUMNS}
    places = [getattr(protocol, name) for name in COLUMNS]
    seen, problems = set[str](), list[str]()
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        problem = _problem(fields, protocol, seen)
        if problem:
            problems.append(f"line {number}: {problem}, got {line!r}")
            continue
        seen.add(fields[protocol.file_name])
        if keep is not None and not keep(fields):
            continue
        for name, place in zip(COLUMNS, places, strict=True):
            columns[name].append(fields[place] if place >= 0 else "-")
    if problems:
        told = f"{path}, {problems[0]}" + (f", and {len(problems) - 1} other lines" if len(problems) > 1 else "")
        if on_error != "skip":
            raise ValueError(f"{told}; a line reads {protocol.example!r}.")
        logger.warning("left out: %s", told)
    if not columns["label"]:
        raise ValueError(f"{path}: the protocol lists no files; fetch it again.")
    columns["attack"] = attacks_of(columns)
    return columns


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the protocol is no UTF-8 text ({error.reason}); fetch it again.") from None


def _problem(fields: list[str], protocol: Protocol, seen: set[str]) -> str | None:
    if len(fields) != protocol.width:
        return f"expected {protocol.width} columns, found {len(fields)}"
    label, attack = fields[protocol.label], fields[protocol.attack] if protocol.attack >= 0 else None
    if label not in LABELS:
        return f"the key must be one of {list(LABELS)}"
    if attack is not None and (attack in ("-", "bonafide")) != (label == "bonafide"):
        return "the attack must be '-' for bonafide and a name for spoof"
    if fields[protocol.file_name] in seen:
        return f"file {fields[protocol.file_name]} is listed twice"
    return None


def listed_rows(
    columns: Columns,
    audio: Path,
    *,
    ending: str = "",
    on_error: OnError | None = None,
    check: bool = True,
    fix: str = "unpack the corpus completely",
    whole: bool = True,
) -> Dataset:
    """Rows of the files that `columns` lists and the folder `audio` holds, one listing of the folder for all.

    Names match in other letter case where no name matches as it is. What is not listed is left out, which is said.

    Args:
        ending: of file names, where the list leaves it out.
        on_error: of files that are absent: "skip" leaves them out, with their number and the first ones; else they are refused.
        whole: whether the list is of all files in the folder, so that others are worth a word.
        check: whether to check the files that are there as `keep_readable` does, unless on_error is None.

    Raises:
        FileNotFoundError: absent files, or nothing but absent files.
    """
    held = set(os.listdir(audio)) if audio.is_dir() else set()
    names = [name + ending for name in columns["file_name"]]
    found = [name if name in held else None for name in names]
    if None in found:
        lower = {name.lower(): name for name in held}
        found = [name or lower.get(asked.lower()) for name, asked in zip(found, names, strict=True)]
        renamed = sum(name is not None and name != asked for name, asked in zip(found, names, strict=True))
        if renamed:
            logger.warning("%d files of %s have names in other letter case than the list", renamed, audio)
    paths = [f"{audio}/{name or asked}" for name, asked in zip(found, names, strict=True)]
    paths, columns = present(paths, columns, "the protocol", on_error, fix, [name is not None for name in found])
    unlisted = sum(name.endswith(ending) for name in held) - len(paths) if ending and whole else 0
    if unlisted:
        logger.warning("%d audio files of %s are not listed in this split, and left out", unlisted, audio)
    return finished(paths, columns, on_error, check)


def present(
    paths: list[str],
    columns: Columns,
    listing: str,
    on_error: OnError | None,
    fix: str,
    there: list[bool] | None = None,
) -> tuple[list[str], Columns]:
    """The rows whose files are there; others are left out with a word if on_error="skip", and refused else.

    there: whether each file is there; None asks the disk.

    Raises:
        FileNotFoundError: absent files, or nothing but absent files.
    """
    there = [os.path.isfile(path) for path in paths] if there is None else there
    absent = [os.path.basename(path) for path, held in zip(paths, there, strict=True) if not held]
    if not absent:
        return paths, columns
    told = f"{len(absent)} of {len(paths)} audio files that {listing} lists are absent"
    told += f" from {os.path.dirname(paths[there.index(False)])}, the first ones {', '.join(absent[:5])}"
    if on_error != "skip" or len(absent) == len(paths):
        raise FileNotFoundError(f"{told}; {fix}.")
    logger.warning("left out: %s", told)
    return list(compress(paths, there)), {name: list(compress(column, there)) for name, column in columns.items()}


def attacks_of(columns: Columns) -> list[str]:
    """The column `attack`, with "-" for bona fide speech."""
    pairs = zip(columns["label"], columns["attack"], strict=True)
    return ["-" if label == LABELS[0] else attack for label, attack in pairs]


def finished(paths: Sequence[str], columns: Columns, on_error: OnError | None, check: bool) -> Dataset:
    """The rows, their files checked unless `on_error` is None or `check` False."""
    rows = audio_dataset(paths, columns["label"], {name: columns[name] for name in COLUMNS if name != "label"})
    return rows if on_error is None or not check else keep_readable(rows, on_error=on_error)


def first_of(candidates: Iterable[Path]) -> Path | None:
    """The first path that is there."""
    return next((path for path in candidates if path.exists()), None)
