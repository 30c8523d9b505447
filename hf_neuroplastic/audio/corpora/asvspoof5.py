"""ASVspoof 5 (Wang et al. 2024, arXiv 2408.08739), track 1.

Protocols are `ASVspoof5.train.tsv`, `ASVspoof5.dev.track_1.tsv` and `ASVspoof5.eval.track_1.tsv`, separated by spaces all the
same: speaker, file, gender, codec, its quality, its seed, attack tag, attack, key, and a last column.

    D_4461 D_0000000169 F - - - AC1 A14 spoof -
    D_4462 D_0000000170 M - - - - bonafide bonafide -

Audio is in `flac_T`, `flac_D` and `flac_E_eval`.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from datasets import Dataset

from .protocols import Protocol, first_of, listed_rows, read_protocol
from .rows import OnError, check_on_error, check_one_of

SPLITS = MappingProxyType(
    {
        "train": ("ASVspoof5.train.tsv", "flac_T"),
        "dev": ("ASVspoof5.dev.track_1.tsv", "flac_D"),
        "eval": ("ASVspoof5.eval.track_1.tsv", "flac_E_eval"),
    }
)
LINES = Protocol(10, "D_4461 D_0000000169 F - - - AC1 A14 spoof -", label=8, attack=7, condition=3)


def load_asvspoof5(
    root: str | Path,
    split: str = "train",
    *,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of track 1 in protocol order. `condition` is the codec. Arguments and errors as `load_asvspoof2019`.

    root: holds the protocols, or a folder of protocols, and the folders of audio.
    """
    check_on_error(on_error)
    check_one_of("split", split, tuple(SPLITS))
    path = protocol_path(Path(root), split)
    if path is None:
        raise FileNotFoundError(
            f"root={str(root)!r} holds no {SPLITS[split][0]}; unpack the protocols of ASVspoof 5 there."
        )
    audio = Path(root) / SPLITS[split][1]
    columns = read_protocol(path, LINES, on_error)
    fix = f"unpack all archives of {audio.name} there"
    return listed_rows(columns, audio, ending=".flac", on_error=on_error, check=check, fix=fix)


def protocol_path(root: Path, split: str) -> Path | None:
    name = SPLITS[split][0]
    return first_of([root / name, root / "ASVspoof5_protocols" / name, root / "protocols" / name])
