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
    """Rows of the files that `columns` lists and the folder `audio` holds, see `present`. What is not listed is told.

    Args:
        ending: of file names, where the list leaves it out.
        on_error: of files that are absent: "skip" leaves them out, with their number and the first ones; else they are refused.
        whole: whether the list is of all files in the folder, so that others are worth a word.
        check: whether to check the files that are there as `keep_readable` does, unless on_error is None.

    Raises:
        FileNotFoundError: absent files, or nothing but absent files.
    """
    paths = [f"{audio}/{name}{ending}" for name in columns["file_name"]]
    paths, columns = present(paths, columns, "the protocol", on_error, fix)
    unlisted = sum(name.endswith(ending) for name in os.listdir(audio)) - len(paths) if ending and whole else 0
    if unlisted:
        logger.warning("%d audio files of %s are not listed in this split, and left out", unlisted, audio)
    return finished(paths, columns, on_error, check)


def present(
    paths: list[str], columns: Columns, listing: str, on_error: OnError | None, fix: str
) -> tuple[list[str], Columns]:
    """The rows whose files are there; others are left out with a word if on_error="skip", and refused else.

    Names match in other letter case where no name matches as it is. Every folder is listed once, however many rows ask.

    Raises:
        FileNotFoundError: absent files, or nothing but absent files.
    """
    held: dict[str, set[str]] = {}
    lower: dict[str, dict[str, str]] = {}
    found, renamed = list[str | None](), 0
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in held:
            held[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name in held[folder]:
            found.append(path)
            continue
        if folder not in lower:
            lower[folder] = {each.lower(): each for each in held[folder]}
        other = lower[folder].get(name.lower())
        renamed += other is not None
        found.append(None if other is None else f"{folder}/{other}")
    if renamed:
        logger.warning("%d files have names in other letter case than %s lists", renamed, listing)
    kept = [path is not None for path in found]
    absent = [path for path, there in zip(paths, kept, strict=True) if not there]
    if absent:
        told = f"{len(absent)} of {len(paths)} audio files that {listing} lists are absent from {os.path.dirname(absent[0])}"
        told += f", the first ones {', '.join(map(os.path.basename, absent[:5]))}"
        if on_error != "skip" or len(absent) == len(paths):
            raise FileNotFoundError(f"{told}; {fix}.")
        logger.warning("left out: %s", told)
    there = [path for path in found if path is not None]
    return there, {name: list(compress(column, kept)) for name, column in columns.items()}


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
