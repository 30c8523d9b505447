"""A table of files, CSV or TSV, with named columns.

    path,label,attack,condition,speaker,split
    clips/a.wav,real,,,anna,train
    clips/b.wav,fake,vits,mp3,anna,eval

Columns `path` (or file, filename, audio) and `label` (or class, target, key) are needed. Labels are names such as real and
fake, bonafide and spoof. Paths are relative to the table's folder. Other headings and labels are told by the
arguments `columns` and `labels`.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from datasets import Dataset

from .folder import SPLIT_FOLDERS
from .labels import bare, meaning
from .protocols import Columns, attacks_of, finished, present
from .rows import LABELS, OnError, check_on_error, check_one_of
from .shares import share

NAMES = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "audio",
        "audio_path",
        "wav",
        "utterance",
    ),
    "label": ("label", "class", "target", "key"),
    "attack": ("attack", "attack_type", "system", "system_id", "model", "generator", "vocoder"),
    "condition": ("condition", "codec", "environment"),
    "speaker": ("speaker", "speaker_id", "spk"),
    "split": ("split", "subset", "partition"),
}
logger = logging.getLogger(__name__)


def load_table(
    path: str | Path,
    split: str = "train",
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    seed: int = 0,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """The rows of a split of a table. Other arguments and errors as `load_asvspoof2019`.

    columns: this table's headings, {"path": "wav", "label": "is_fake"}. labels: what its labels mean, {"0": "bonafide", "1":
    "spoof"}. A table without a column `split` is split at random by `seed`, .7, .1 and .2, speaker by speaker where it names
    speakers.

    Raises:
        ValueError: no columns of these names, a label that is no name of either class, a file listed twice.
    """
    check_on_error(on_error)
    check_one_of("split", split, tuple(SPLIT_FOLDERS))
    unknown = sorted(set(columns or {}) - set(NAMES))
    if unknown:
        raise ValueError(f"columns may name {', '.join(NAMES)}; got {', '.join(unknown)}")
    meanings = {name: meaning(word) or "" for name, word in (labels or {}).items()}
    for name, word in (labels or {}).items():
        if not meanings[name]:
            raise ValueError(
                f"labels must mean {' or '.join(LABELS)}, such as 0=bonafide and 1=spoof; got {name}={word}"
            )
    how = {"columns": columns or {}, "labels": meanings}
    return table_rows(Path(path), Path(path).parent, split, **how, seed=seed, on_error=on_error, check=check)


def table_rows(
    path: Path,
    audio: Path,
    split: str | None = None,
    *,
    columns: Mapping[str, str] = MappingProxyType({}),
    labels: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """The rows of a table, of one split or all.

    audio: folder that paths are relative to. columns: headings by the names of `NAMES`. labels: meanings of words in the table.
    """
    content = _renamed(read_table(path), columns, path)
    if not {"path", "label"} <= set(content):
        needed = "; ".join(f"{name} (or {', '.join(NAMES[name][1:])})" for name in ("path", "label"))
        raise ValueError(
            f"{path} needs columns {needed}, or --columns to name them; got {', '.join(content) or 'none'}"
        )
    faults, meant, seen = list[str](), list[str](), set[str]()
    for number, (name, label) in enumerate(zip(content["path"], content["label"], strict=True), start=2):
        known = labels.get(label) or meaning(label)
        if known is None:
            faults.append(
                f"line {number}: label {label!r} is no name of bona fide or spoofed speech, such as real or fake; "
                "--labels tells what it means, as in 0=bonafide,1=spoof"
            )
        elif name in seen:
            faults.append(f"line {number}: file {name} is listed twice")
            known = None
        meant.append(known or "")
        seen.add(name)
    kept = [bool(label) for label in meant]
    if faults:
        others = f", and {len(faults) - 1} other lines" if len(faults) > 1 else ""
        if on_error != "skip" or not any(kept):
            raise ValueError(f"{path}, {faults[0]}{others}")
        logger.warning("left out: %s, %s%s", path, faults[0], others)
    if split is not None:
        kept = [a and b for a, b in zip(kept, _in_split(path, content, split, seed), strict=True)]
    chosen = [index for index, keep in enumerate(kept) if keep]
    if not chosen:
        raise FileNotFoundError(f"{path} has no rows of split {split!r}")
    told: Columns = {
        name: [content[name][i] or "-" for i in chosen] if name in content else ["-"] * len(chosen)
        for name in ("attack", "condition", "speaker")
    }
    told["label"] = [meant[i] for i in chosen]
    told["file_name"] = [content["path"][i] for i in chosen]
    told["attack"] = attacks_of(told)
    paths = [os.path.join(audio, name) for name in told["file_name"]]
    paths, told = present(paths, told, str(path), on_error, "paths are relative to the table's folder")
    return finished(paths, told, on_error, check)


def splits_in_table(path: Path, columns: Mapping[str, str] | None = None) -> list[str]:
    """The splits that a table's column names; all three where a random split makes them."""
    content = _renamed(read_table(path), columns or {}, path)
    if "split" not in content:
        return list(SPLIT_FOLDERS)
    named = {bare(name) for name in content["split"]}
    known = [split for split, names in SPLIT_FOLDERS.items() if named & set(names)]
    return known or list(SPLIT_FOLDERS)  # names that no one knows are refused in reading


def _renamed(content: Columns, columns: Mapping[str, str], path: Path) -> Columns:
    absent = sorted(set(columns.values()) - set(content))
    if absent:
        raise ValueError(f"{path} has no column {absent[0]!r}; it has {', '.join(content)}")
    return {**content, **{name: content[heading] for name, heading in columns.items()}}


def _in_split(path: Path, columns: Columns, split: str, seed: int) -> list[bool]:
    if "split" not in columns:
        speakers = columns.get("speaker", columns["path"])
        units = [path if who in ("", "-") else who for who, path in zip(speakers, columns["path"], strict=True)]
        return [part == split for part in share(units, seed)]
    known = [name for names in SPLIT_FOLDERS.values() for name in names]
    unknown = sorted({name for name in columns["split"] if bare(name) not in known})
    if unknown:
        raise ValueError(f"{path} names the split {unknown[0]!r}; the names are {', '.join(known)}")
    return [bare(name) in SPLIT_FOLDERS[split] for name in columns["split"]]


def read_table(path: Path, rows: int | None = None) -> Columns:
    """Columns by name, under the names of `NAMES` where a column means one of them. rows: how many are read; None reads all.

    Raises:
        ValueError: no UTF-8 text, or a line of another width, by file and number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            separator = max("\t,;|", key=first.count)
            header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
            lines = list(csv.reader(file, delimiter=separator)) if rows is None else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of UTF-8 text: {error}") from None
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} columns, found {len(line)}, got {separator.join(line)!r}"
            )
    columns = {name: [line[index] for line in lines] for index, name in enumerate(header)}
    lower = {name.lower(): name for name in header}
    for meant, names in NAMES.items():
        present = next((lower[name] for name in names if name in lower), None)
        if present is not None:
            columns.setdefault(meant, columns[present])
    return {name: [value.strip() for value in column] for name, column in columns.items()}
