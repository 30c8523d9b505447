"""Folders of real and fake audio files, in the manner of the Fake-or-Real corpus (Reimao and Tzerpos 2019).

    split first    training/real/*.wav, training/fake/*.wav, validation/..., testing/...
    label first    real/training/*.wav, real/testing/*.wav, fake/training/...
    flat           real/*.wav, fake/*.wav, which are then split by a seed

Names of folders match whatever their case and marks; `labels.WORDS` has those of labels. Files are found at any depth below,
through links too. Hidden files and folders are left out.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soundfile
from datasets import Dataset

from .labels import WORDS, bare
from .readable import keep_readable
from .rows import OnError, audio_dataset, check_on_error, check_one_of
from .shares import SHARES

SPLIT_FOLDERS = MappingProxyType(
    {
        "train": ("training", "train"),
        "dev": ("validation", "valid", "val", "development", "dev"),
        "eval": ("testing", "test", "evaluation", "eval"),
    }
)
logger = logging.getLogger(__name__)


def load_folder(
    root: str | Path,
    split: str = "train",
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = SHARES,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of the audio files under `root`, sorted by path, bona fide first.

    Rows as `hf_neuroplastic.audio.corpora.rows` says: `file_name` is relative to `root`; a folder right below that of bona fide
    files names the speaker, one below that of spoofed files the attack. Files that soundfile does not read are left out, with
    a warning that counts their endings. `root` may hold one single folder that holds the corpus.

    Args:
        seed, shares: how flat folders are split: the files of each label are shuffled by `seed` and cut into train,
            dev and eval by `shares`, which sum to 1; each file is in exactly one split. Folders with splits ignore
            both. A random split does not keep a speaker's files together, which a warning says where there are folders of
            speakers: give split folders where speakers must not be shared.
        on_error: of files that cannot be read, and names that are not UTF-8: None refuses such names and reads no audio;
            "raise" and "skip" refuse or leave out such names, and audio as `keep_readable` does.
        check: False reads no audio, whatever `on_error` says.

    Raises:
        ValueError: unknown split, shares that are no shares, two folders for one name, splits in some label folders only, a
            name that is not UTF-8, or no audio of one of the labels.
        FileNotFoundError: no `root`, or neither split folders nor label folders in it.
        AudioDecodingError: with on_error="raise".
    """
    root = Path(root)
    check_on_error(on_error)
    check_one_of("split", split, tuple(SPLIT_FOLDERS))
    if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9 or len(shares) != len(SPLIT_FOLDERS):
        raise ValueError(f"shares must be three non-negative numbers (train, dev, eval) that sum to 1, got {shares}.")
    if not root.is_dir():
        raise FileNotFoundError(f"root={str(root)!r} is no folder; give the folder that holds the audio.")
    folders, is_split = _label_folders(corpus_folder(root), split)
    paths, labels, parts = list[str](), list[str](), list[str]()
    left_out = LeftOut()
    for number, (label, folder) in enumerate(folders.items()):
        files = audio_files(folder, left_out, on_error)
        if not is_split:
            _warn_of_parts(files, folder)
            files = _share(files, np.random.default_rng((seed, number)), split, shares)
        if not files:
            raise ValueError(f"{folder} has no audio files for label {label!r} in split {split!r}; add some.")
        paths += files
        labels += [label] * len(files)
        parts += [_part(file, folder) for file in files]
    left_out.tell(root)
    columns = {
        "file_name": [os.path.relpath(path, root) for path in paths],
        "attack": ["-" if label == "bonafide" else part for label, part in zip(labels, parts, strict=True)],
        "condition": ["-"] * len(paths),
        "speaker": [part if label == "bonafide" else "-" for label, part in zip(labels, parts, strict=True)],
    }
    rows = audio_dataset(paths, labels, columns)
    return rows if on_error is None or not check else keep_readable(rows, on_error=on_error)


def corpus_folder(root: Path) -> Path:
    """`root`, or the folder with splits or labels that `root` holds alone, at any depth."""
    folder, names = root, [*SPLIT_FOLDERS.values(), *WORDS.values()]
    held = _folders(folder)
    while not any(_child(folder, each, held) for each in names):
        if len(held) != 1:
            return root
        folder = folder / held[0]
        held = _folders(folder)
    return folder


def splits_in(root: Path) -> list[str]:
    """The splits of a folder: those with a folder, or all three of a flat one; none where there are no labels either."""
    first = {name: _child(root, names) for name, names in SPLIT_FOLDERS.items()}
    if any(first.values()):
        return [name for name, path in first.items() if path]
    labels = [_child(root, names) for names in WORDS.values()]
    if not all(labels):
        return []
    inner = {name: all(_child(path, names) for path in labels if path) for name, names in SPLIT_FOLDERS.items()}
    return [name for name, there in inner.items() if there] or list(SPLIT_FOLDERS)


def _label_folders(root: Path, split: str) -> tuple[dict[str, Path], bool]:
    """The folder of each label in a split, and whether the corpus is split."""
    splits = {name: _child(root, names) for name, names in SPLIT_FOLDERS.items()}
    labels = {name: _child(root, names) for name, names in WORDS.items()}
    if any(splits.values()):
        if any(labels.values()):
            both = ", ".join(sorted(path.name for path in (*splits.values(), *labels.values()) if path))
            raise ValueError(
                f"{root} holds folders of splits and of labels side by side ({both}); take one of the two out."
            )
        folder = _required(root, SPLIT_FOLDERS[split], f"split {split!r}")
        return {name: _required(folder, names, f"label {name!r}") for name, names in WORDS.items()}, True
    found = {name: _required(root, names, f"label {name!r}") for name, names in WORDS.items()}
    inner = {name: [_child(folder, names) for names in SPLIT_FOLDERS.values()] for name, folder in found.items()}
    if not any(map(any, inner.values())):
        return found, False
    return {name: _required(folder, SPLIT_FOLDERS[split], f"split {split!r}") for name, folder in found.items()}, True


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _child(folder: Path, names: tuple[str, ...], held: list[str] | None = None) -> Path | None:
    """The folder in `folder` that has one of the names. held: as `_folders` gives."""
    matches = [name for name in (_folders(folder) if held is None else held) if bare(name) in names]
    if len(matches) > 1:
        raise ValueError(f"{folder} holds {matches}, which mean the same; keep one of them.")
    return folder / matches[0] if matches else None


def _required(folder: Path, names: tuple[str, ...], what: str) -> Path:
    found = _child(folder, names)
    if found is None:
        present = ", ".join(_folders(folder)) or "none"
        raise FileNotFoundError(
            f"{folder} has no folder for {what}: found folders {present}; name one of them {' or '.join(names)} "
            "(upper or lower case)."
        )
    return found


def audio_suffixes() -> set[str]:
    """Endings of the names of files that soundfile reads, in lower case."""
    known = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus", ".oga"}
    return known - {".raw"}  # has no header: nothing says what its bytes mean


@dataclass
class LeftOut:
    """What a search for audio has passed by: endings by number, hidden entries, folders reached twice, and names."""

    endings: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    again: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def tell(self, root: Path) -> None:
        """One warning, if there is anything to tell."""
        told = []
        if self.endings:
            counts = ", ".join(f"{count} {ending}" for ending, count in self.endings.most_common())
            told.append(f"{self.endings.total()} files that soundfile does not read ({counts})")
        if self.hidden:
            told.append(f"{self.hidden} hidden files and folders")
        if self.again:
            told.append(f"{len(self.again)} links to folders that are listed already, such as {self.again[0]}")
        if self.names:
            told.append(f"{len(self.names)} files whose names are not UTF-8, such as {self.names[0]!r}")
        if told:
            logger.warning("left out of %s: %s", root, "; ".join(told))


def audio_files(folder: Path, left_out: LeftOut, on_error: OnError | None = None) -> list[str]:
    """Paths of the audio files at any depth below `folder`, through links too, sorted; each folder once.

    Raises:
        ValueError: a name that is not UTF-8, unless on_error="skip".
    """
    known, found, seen = audio_suffixes(), list[str](), {os.path.realpath(folder)}
    for path, folders, files in os.walk(folder, followlinks=True):
        left_out.hidden += sum(name.startswith(".") for name in (*folders, *files))
        visible = list[str]()
        for name in sorted(name for name in folders if not name.startswith(".")):
            place = os.path.realpath(inner := os.path.join(path, name))
            if place in seen:
                left_out.again.append(inner)
            else:
                seen.add(place)
                visible.append(name)
        folders[:] = visible
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending not in known:
                left_out.endings[ending or "without an ending"] += 1
            elif os.path.isfile(file := os.path.join(path, name)):
                found.append(file)
    return sorted(_utf8(found, left_out, on_error))


def _utf8(paths: Iterable[str], left_out: LeftOut, on_error: OnError | None) -> list[str]:
    """The paths that are UTF-8: a table of paths holds no others."""
    kept = []
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            name = os.fsencode(path).decode(errors="backslashreplace")
            if on_error != "skip":
                raise ValueError(
                    f"the name of {name} is not UTF-8; rename the file, or leave it out by on_error='skip'."
                ) from None
            left_out.names.append(name)
        else:
            kept.append(path)
    return kept


def _part(file: str, folder: Path) -> str:
    """Name of the folder right below `folder` in which a file lies; "-" where the file lies in `folder` itself."""
    first, _, rest = os.path.relpath(file, folder).partition(os.sep)
    return first if rest else "-"


def _warn_of_parts(files: list[str], folder: Path) -> None:
    parts = sorted({_part(file, folder) for file in files} - {"-"})
    if parts:
        logger.warning(
            "%s is split at random, file by file: folders such as %s have files in several splits; give folders named train, "
            "dev and eval where speakers or attacks must be kept apart",
            folder,
            parts[0],
        )


def _share(files: list[str], rng: np.random.Generator, split: str, shares: tuple[float, float, float]) -> list[str]:
    index = tuple(SPLIT_FOLDERS).index(split)
    bounds = np.rint(np.concatenate([[0.0], np.cumsum(shares)]) * len(files)).astype(int)
    chosen = rng.permutation(len(files))[bounds[index] : bounds[index + 1]]
    return [files[position] for position in sorted(chosen)]
