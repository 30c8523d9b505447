"""ASVspoof 2021 (Liu et al. 2023, arXiv 2210.02437), logical access (LA) and deepfakes (DF): evaluation data and their keys.

Audio is `ASVspoof2021_LA_eval/flac/<utterance>.flac`; the keys come apart, `keys/LA/CM/trial_metadata.txt`:

    LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
    LA_0043 DF_E_2000026 mp3m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder_nonautoregressive - - - -

that is speaker, utterance, codec, transmission or source, attack, key, trim, phase, and in DF vocoder and four more.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from .protocols import Protocol, first_of, listed_rows, read_protocol
from .rows import OnError, check_on_error, check_one_of

PHASES = ("eval", "progress", "hidden")
LINES = {
    "LA": Protocol(8, "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval", label=5, attack=4),
    "DF": Protocol(
        13, "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim eval traditional_vocoder - - - -", label=5, attack=4
    ),
}
PHASE = 7  # column


def load_asvspoof2021(
    root: str | Path,
    access: str = "LA",
    split: str = "eval",
    *,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """The utterances of one phase; results are reported on "eval". Arguments and errors as `load_asvspoof2019`.

    root: holds `ASVspoof2021_LA_eval` and the keys, unpacked side by side. `condition` is the codec.
    """
    check_on_error(on_error)
    check_one_of("access", access, tuple(LINES))
    check_one_of("split", split, PHASES)
    root = Path(root)
    keys = keys_path(root, access)
    if keys is None:
        raise FileNotFoundError(
            f"root={str(root)!r} holds no keys of ASVspoof 2021 {access}: looked for keys/{access}/CM/trial_metadata.txt; "
            f"unpack {access}-keys-full beside ASVspoof2021_{access}_eval."
        )
    columns = read_protocol(keys, LINES[access], on_error, keep=lambda fields: fields[PHASE].startswith(split))
    audio = first_of([root / f"ASVspoof2021_{access}_eval" / "flac", root / "flac"]) or root / "flac"
    fix = f"unpack ASVspoof2021_{access}_eval completely"
    return listed_rows(columns, audio, ending=".flac", on_error=on_error, check=check, fix=fix, whole=False)


def keys_path(root: Path, access: str) -> Path | None:
    """trial_metadata.txt, where it is."""
    folders = [root, root / f"{access}-keys-full", root / f"ASVspoof2021_{access}_eval", root.parent]
    inside = [folder / "keys" / access / "CM" for folder in folders] + [
        folder / "keys" / "CM" for folder in folders[:3]
    ]
    return first_of(folder / "trial_metadata.txt" for folder in inside)


def accesses_in(root: Path) -> list[str]:
    """Which of LA and DF are there, with audio and keys."""
    return [
        access
        for access in LINES
        if keys_path(root, access) and ((root / f"ASVspoof2021_{access}_eval").is_dir() or (root / "flac").is_dir())
    ]


def phases_in(root: Path, access: str) -> list[str]:
    """Which phases the keys name; the organisers' script wants scores of all."""
    keys = keys_path(root, access)
    if keys is None:
        return []
    lines = (line.split() for line in keys.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    named = {fields[PHASE] for fields in lines if len(fields) > PHASE}
    return [phase for phase in PHASES if any(name.startswith(phase) for name in named)]
