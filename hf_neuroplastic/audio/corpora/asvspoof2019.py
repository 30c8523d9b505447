"""ASVspoof 2019 (Wang et al. 2020, arXiv 1911.01601), logical (LA) and physical access (PA), as datasets of audio
paths.

A countermeasure protocol has five columns, in LA and PA alike:

    SPEAKER_ID FILE_NAME ENVIRONMENT_ID SYSTEM_ID KEY
    LA_0069 LA_D_1047731 - A01 spoof            LA has no environments: "-"
    PA_0079 PA_T_0000001 aaa - bonafide         bona fide has no attack: "-"

and its audio is `ASVspoof2019_LA_train/flac/<FILE_NAME>.flac`.
"""

from __future__ import annotations

import logging
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from datasets import Dataset

from .readable import keep_readable
from .rows import LABELS, OnError, audio_dataset, check_on_error, names_in

SPLITS = MappingProxyType({"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"})
ACCESSES = ("LA", "PA")
logger = logging.getLogger(__name__)
COLUMNS = ("speaker", "file_name", "condition", "attack", "label")


def load_asvspoof2019(
    root: str | Path,
    access: Literal["LA", "PA"] = "LA",
    split: Literal["train", "dev", "eval"] = "train",
    *,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of the corpus under `root` (the folder that holds `LA`, or the folder `LA` itself) in protocol order.

    Rows as `hf_neuroplastic.audio.corpora.rows` says; `condition` is the environment of PA, `file_name` has no ending.

    Args:
        on_error: of audio that is absent or cannot be read: None refuses absent files and reads no audio; "raise" and "skip"
            refuse such files or leave them out, by name, as `keep_readable` does.
        check: False reads no audio, whatever `on_error` says.

    Raises:
        ValueError: unknown access or split, or a malformed protocol line (named by file and number).
        FileNotFoundError: no corpus at `root`, or audio files that the protocol lists are absent.
        AudioDecodingError: with on_error="raise".
    """
    check_on_error(on_error)
    if access not in ACCESSES:
        raise ValueError(f"access must be one of {list(ACCESSES)}, got {access!r}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}.")
    folder = _access_folder(Path(root), access, split)
    lines = read_protocol(protocol_path(folder, access, split))
    audio = audio_folder(folder, access, split)
    columns = {name: [line[name] for line in lines] for name in COLUMNS}
    held = names_in(audio)
    absent = [name for name in columns["file_name"] if f"{name}.flac" not in held]
    if absent:
        told = (
            f"{len(absent)} of {len(lines)} audio files that the {access} {split} protocol lists are absent from {audio}, the "
            f"first ones {', '.join(f'{name}.flac' for name in absent[:5])}"
        )
        if on_error != "skip" or len(absent) == len(lines):
            raise FileNotFoundError(f"{told}; unpack ASVspoof2019_{access}_{split} completely.")
        logger.warning("left out: %s", told)
        kept = [f"{name}.flac" in held for name in columns["file_name"]]
        columns = {name: list(compress(column, kept)) for name, column in columns.items()}
    rows = audio_dataset([f"{audio}/{name}.flac" for name in columns["file_name"]], columns.pop("label"), columns)
    return rows if on_error is None or not check else keep_readable(rows, on_error=on_error)


def protocol_path(folder: Path, access: str, split: str) -> Path:
    """Protocol file of a split; `folder` is the corpus folder LA or PA."""
    return folder / f"ASVspoof2019_{access}_cm_protocols" / f"ASVspoof2019.{access}.cm.{SPLITS[split]}.txt"


def audio_folder(folder: Path, access: str, split: str) -> Path:
    """Folder of a split's FLAC files; `folder` is the corpus folder LA or PA."""
    return folder / f"ASVspoof2019_{access}_{split}" / "flac"


def read_protocol(path: Path) -> list[dict[str, str]]:
    """Rows of a countermeasure protocol as dictionaries of its five columns, the key as `label`.

    Raises ValueError at a line that has not five columns, an unknown key, an attack beside "bonafide" or none beside
    "spoof", at a file listed twice, and if there is no line at all.
    """
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the protocol is no UTF-8 text ({error.reason}); fetch it again.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        problem = _problem(fields, seen)
        if problem:
            raise ValueError(
                f"{path}, line {number}: {problem}, got {line!r}; a line reads "
                "'SPEAKER_ID FILE_NAME ENVIRONMENT_ID SYSTEM_ID KEY', like 'LA_0039 LA_E_2834763 - A11 spoof'."
            )
        seen.add(fields[1])
        rows.append(dict(zip(COLUMNS, fields, strict=True)))
    if not rows:
        raise ValueError(f"{path}: the protocol lists no files; fetch it again.")
    return rows


def _problem(fields: list[str], seen: set[str]) -> str | None:
    if len(fields) != 5:
        return f"expected 5 columns, found {len(fields)}"
    _, name, _, system, key = fields
    if key not in LABELS:
        return f"KEY must be one of {list(LABELS)}"
    if (system == "-") != (key == "bonafide"):
        return "SYSTEM_ID must be '-' for bonafide and an attack for spoof"
    if name in seen:
        return f"file {name} is listed twice"
    return None


def _access_folder(root: Path, access: str, split: str) -> Path:
    for folder in (root / access, root):
        if protocol_path(folder, access, split).is_file():
            return folder
    raise FileNotFoundError(
        f"root={str(root)!r} holds no ASVspoof 2019 {access} protocol for split {split!r}: looked for "
        f"{protocol_path(root / access, access, split)} and {protocol_path(root, access, split)}; "
        f"give the folder that holds {access!r}, or the folder {access!r} itself."
    )
