"""ASVspoof 2019 (Wang et al. 2020, arXiv 1911.01601), logical (LA) and physical access (PA).

A countermeasure protocol has five columns, in LA and PA alike: speaker, utterance, environment, attack, key.

    LA_0069 LA_D_1047731 - A01 spoof            LA has no environments: "-"
    PA_0079 PA_T_0000001 aaa - bonafide         bona fide has no attack: "-"

and its audio is `ASVspoof2019_LA_train/flac/<utterance>.flac`.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from datasets import Dataset

from .protocols import Protocol, listed_rows, read_protocol
from .rows import OnError, check_on_error, check_one_of

SPLITS = MappingProxyType({"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"})
ACCESSES = ("LA", "PA")
LINES = Protocol(5, "LA_0039 LA_E_2834763 - A11 spoof")


def load_asvspoof2019(
    root: str | Path,
    access: str = "LA",
    split: str = "train",
    *,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of the corpus under `root` (the folder that holds `LA`, or the folder `LA` itself) in protocol order.

    Rows as `hf_neuroplastic.audio.corpora.rows` says; `condition` is the environment of PA, `file_name` has no ending.

    Args:
        on_error: of lines that make no sense and audio that is absent or cannot be read: None refuses the first two and reads
            no audio; "raise" and "skip" refuse all three or leave them out, with a word.
        check: False reads no audio, whatever `on_error` says.

    Raises:
        ValueError: unknown access or split, or a malformed protocol line (named by file and number).
        FileNotFoundError: no corpus at `root`, or audio files that the protocol lists are absent.
        AudioDecodingError: with on_error="raise".
    """
    check_on_error(on_error)
    check_one_of("access", access, ACCESSES)
    check_one_of("split", split, tuple(SPLITS))
    folder = _access_folder(Path(root), access, split)
    columns = read_protocol(protocol_path(folder, access, split), LINES, on_error)
    audio = audio_folder(folder, access, split)
    fix = f"unpack ASVspoof2019_{access}_{split} completely"
    return listed_rows(columns, audio, ending=".flac", on_error=on_error, check=check, fix=fix)


def protocol_path(folder: Path, access: str, split: str) -> Path:
    """Protocol file of a split; `folder` is the corpus folder LA or PA."""
    return folder / f"ASVspoof2019_{access}_cm_protocols" / f"ASVspoof2019.{access}.cm.{SPLITS[split]}.txt"


def audio_folder(folder: Path, access: str, split: str) -> Path:
    """Folder of a split's FLAC files; `folder` is the corpus folder LA or PA."""
    return folder / f"ASVspoof2019_{access}_{split}" / "flac"


def accesses_in(root: Path) -> list[str]:
    """Which of LA and PA are there."""
    places = [(access, folder) for access in ACCESSES for folder in (root / access, root)]
    return list(dict.fromkeys(a for a, f in places if any(protocol_path(f, a, split).is_file() for split in SPLITS)))


def _access_folder(root: Path, access: str, split: str) -> Path:
    for folder in (root / access, root):
        if protocol_path(folder, access, split).is_file():
            return folder
    raise FileNotFoundError(
        f"root={str(root)!r} holds no ASVspoof 2019 {access} protocol for split {split!r}: looked for "
        f"{protocol_path(root / access, access, split)} and {protocol_path(root, access, split)}; "
        f"give the folder that holds {access!r}, or the folder {access!r} itself."
    )
