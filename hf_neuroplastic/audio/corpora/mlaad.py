"""MLAAD (Mueller et al. 2024, arXiv 2401.09512): synthetic speech of many languages and models; its real speech comes apart.

fake/<language>/<model>/*.wav, with a meta.csv in every folder of a model
"""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset

from .folder import LeftOut, audio_files
from .protocols import finished
from .rows import OnError, check_on_error, check_one_of


def load_mlaad(
    root: str | Path,
    split: str = "eval",
    *,
    real: str | Path | None = None,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """Generated and real speech; the only split is "eval". The attack is the model, the condition the language.

    Args:
        real: folder of real speech, such as M-AILABS (whose first folders are languages); by default `real` in `root`.
    Other arguments and errors as `load_asvspoof2019`.
    """
    check_on_error(on_error)
    check_one_of("split", split, ("eval",))
    fake = fake_folder(Path(root))
    source = Path(real) if real is not None else Path(root) / "real"
    if fake is None or not source.is_dir():
        lacking = (
            "fake/<language>/<model>"
            if fake is None
            else "real speech, which MLAAD has none of; give its folder as real"
        )
        raise FileNotFoundError(f"root={str(root)!r} holds no {lacking}.")
    left_out = LeftOut()
    spoofed, bona_fide = (audio_files(folder, left_out, on_error) for folder in (fake, source))
    left_out.endings.pop(".csv", None)
    left_out.tell(Path(root))
    if not spoofed or not bona_fide:
        raise FileNotFoundError(
            f"{len(bona_fide)} real audio files in {source} and {len(spoofed)} in {fake}; both are needed."
        )
    parts = [os.path.relpath(path, fake).split(os.sep) for path in spoofed]
    languages = [os.path.relpath(path, source).split(os.sep) for path in bona_fide]
    columns = {
        "file_name": [os.path.relpath(path, root) for path in (*bona_fide, *spoofed)],
        "label": ["bonafide"] * len(bona_fide) + ["spoof"] * len(spoofed),
        "attack": ["-"] * len(bona_fide) + [part[1] if len(part) > 2 else part[0] for part in parts],
        "condition": [*(_language(part) for part in languages), *(_language(part) for part in parts)],
        "speaker": ["-"] * (len(bona_fide) + len(spoofed)),
    }
    return finished([*bona_fide, *spoofed], columns, on_error, check)


def fake_folder(root: Path) -> Path | None:
    """fake, in `root` or `root` itself, if it holds languages that hold models."""
    for folder in (root / "fake", root):
        if folder.name == "fake" and folder.is_dir() and any(folder.glob("*/*/meta.csv")):
            return folder
    return None


def _language(parts: list[str]) -> str:
    """The first folder, as in de or de_DE; "-" where there is none."""
    return parts[0].partition("_")[0] if len(parts) > 1 else "-"
