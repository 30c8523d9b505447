"""Folders of real and fake audio files, in the manner of the Fake-or-Real corpus (Reimao and Tzerpos 2019).

With splits, `training/real/*.wav`, `training/fake/*.wav`, `validation/...`, `testing/...`; or flat, `real/` and
`fake/` alone, which are then split by a seed. Folder names match whatever their case; files are found at any depth
below a label folder.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import soundfile
from datasets import Dataset

from .rows import OnError, audio_dataset

SPLIT_FOLDERS = MappingProxyType(
    {
        "train": ("training", "train"),
        "dev": ("validation", "valid", "val", "development", "dev"),
        "eval": ("testing", "test", "evaluation", "eval"),
    }
)
LABEL_FOLDERS = MappingProxyType(
    {
        "bonafide": ("real", "bonafide", "bona-fide", "bona_fide", "genuine", "human"),
        "spoof": ("fake", "spoof", "spoofed", "deepfake", "synthetic"),
    }
)
DEFAULT_SHARES = (0.7, 0.1, 0.2)


def load_folder(
    root: str | Path,
    split: Literal["train", "dev", "eval"] = "train",
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = DEFAULT_SHARES,
    on_error: OnError | None = None,
) -> Dataset:
    """One split of the audio files under `root`, sorted by path, bona fide first.

    Columns: `audio` (path, not decoded), `label` (0 bonafide, 1 spoof) and `file_name` (relative to `root`). Files whose
    extension soundfile does not read, and hidden ones, are left out.

    Args:
        seed, shares: how flat folders are split: the files of each label are shuffled by `seed` and cut into train,
            dev and eval by `shares`, which sum to 1; each file is in exactly one split. Folders with splits ignore
            both. A random split keeps a speaker's files together only by luck: give split folders where speakers must
            not be shared.
        on_error: as in `load_asvspoof2019`.

    Raises:
        ValueError: unknown split, shares that are no shares, two folders for one name, or no audio of one of the
            labels.
        FileNotFoundError: no `root`, or neither split folders nor label folders in it.
        AudioDecodingError: with on_error="raise".
    """
    root = Path(root)
    if split not in SPLIT_FOLDERS:
        raise ValueError(f"split must be one of {list(SPLIT_FOLDERS)}, got {split!r}.")
    if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9 or len(shares) != len(SPLIT_FOLDERS):
        raise ValueError(f"shares must be three non-negative numbers (train, dev, eval) that sum to 1, got {shares}.")
    if not root.is_dir():
        raise FileNotFoundError(f"root={str(root)!r} is no folder; give the folder that holds the audio.")
    is_split = any(_child(root, names) for names in SPLIT_FOLDERS.values())
    folder = _required(root, SPLIT_FOLDERS[split], f"split {split!r}") if is_split else root
    paths: list[Path] = []
    labels: list[str] = []
    for number, (label, names) in enumerate(LABEL_FOLDERS.items()):
        files = _audio_files(_required(folder, names, f"label {label!r}"))
        if not is_split:
            files = _share(files, np.random.default_rng((seed, number)), split, shares)
        if not files:
            raise ValueError(f"{folder} has no audio files for label {label!r} in split {split!r}; add some.")
        paths += files
        labels += [label] * len(files)
    columns = {"file_name": [path.relative_to(root).as_posix() for path in paths]}
    return audio_dataset(paths, labels, columns, on_error=on_error)


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    matches = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names]
    if len(matches) > 1:
        raise ValueError(f"{folder} holds {[path.name for path in matches]}, which mean the same; keep one of them.")
    return matches[0] if matches else None


def _required(folder: Path, names: tuple[str, ...], what: str) -> Path:
    found = _child(folder, names)
    if found is None:
        present = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
        raise FileNotFoundError(
            f"{folder} has no folder for {what}: found folders {present}; name one of them {' or '.join(names)} "
            "(upper or lower case)."
        )
    return found


def audio_suffixes() -> set[str]:
    """Endings of the names of files that soundfile reads, in lower case."""
    known = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus", ".oga"}
    return known - {".raw"}  # has no header: nothing says what its bytes mean


def _audio_files(folder: Path) -> list[Path]:
    known = audio_suffixes()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in known and not path.name.startswith(".") and path.is_file()
    )


def _share(files: list[Path], rng: np.random.Generator, split: str, shares: tuple[float, float, float]) -> list[Path]:
    index = tuple(SPLIT_FOLDERS).index(split)
    bounds = np.rint(np.concatenate([[0.0], np.cumsum(shares)]) * len(files)).astype(int)
    chosen = rng.permutation(len(files))[bounds[index] : bounds[index + 1]]
    return [files[position] for position in sorted(chosen)]
