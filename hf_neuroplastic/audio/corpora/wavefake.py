"""WaveFake (Frank and Schoenherr 2021, arXiv 2111.02813): vocoders on LJSpeech and JSUT, whose real speech comes apart.

generated_audio/ljspeech_melgan/LJ001-0001_gen.wav, generated_audio/jsut_parallel_wavegan/...
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from datasets import Dataset

from .folder import LeftOut, audio_files
from .protocols import finished, first_of
from .rows import OnError, check_on_error, check_one_of
from .shares import SPLITS, share

REAL = ("LJSpeech-1.1", "LJSpeech", "ljspeech", "jsut_ver1.1", "jsut", "real", "real_audio")


def load_wavefake(
    root: str | Path,
    split: str = "train",
    *,
    real: str | Path | None = None,
    seed: int = 0,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of generated and real speech, .7, .1 and .2 of the sentences by `seed`.

    A sentence and what vocoders made of it stay together. The attack is the folder, such as ljspeech_melgan. Arguments and
    errors as `load_asvspoof2019`.

    real: folder of the real speech; by default LJSpeech-1.1, jsut_ver1.1 or real beside generated_audio.
    """
    check_on_error(on_error)
    check_one_of("split", split, SPLITS)
    generated = generated_folder(Path(root))
    sources = [Path(real)] if real is not None else real_folders(Path(root))
    if generated is None or not sources:
        lacking = (
            "generated_audio" if generated is None else f"real speech ({', '.join(REAL)}); give its folder as real"
        )
        raise FileNotFoundError(f"root={str(root)!r} holds no {lacking}.")
    left_out = LeftOut()
    spoofed = audio_files(generated, left_out, on_error)
    bona_fide = [file for source in sources for file in audio_files(source, left_out, on_error)]
    left_out.tell(Path(root))
    if not spoofed or not bona_fide:
        raise FileNotFoundError(
            f"root={str(root)!r} holds {len(bona_fide)} real and {len(spoofed)} generated audio files."
        )
    paths = [*bona_fide, *spoofed]
    parts = share([_sentence(path) for path in paths], seed)
    attacks = ["-"] * len(bona_fide) + [os.path.relpath(path, generated).split(os.sep)[0] for path in spoofed]
    chosen = [index for index, part in enumerate(parts) if part == split]
    columns = {
        "file_name": [os.path.relpath(paths[i], root) for i in chosen],
        "label": ["bonafide" if i < len(bona_fide) else "spoof" for i in chosen],
        "attack": [attacks[i] for i in chosen],
        "condition": ["-"] * len(chosen),
        "speaker": ["-"] * len(chosen),
    }
    return finished([paths[i] for i in chosen], columns, on_error, check)


def generated_folder(root: Path) -> Path | None:
    """generated_audio, in `root` or `root` itself."""
    return first_of([root / "generated_audio"]) or (root if root.name == "generated_audio" else None)


def real_folders(root: Path) -> list[Path]:
    """Folders of real speech in `root`, or beside it where `root` is generated_audio itself."""
    holder = root.parent if root.name == "generated_audio" else root
    return [holder / name for name in REAL if (holder / name).is_dir()]


def _sentence(path: str) -> str:
    """LJ001-0001 of LJ001-0001_gen.wav."""
    return re.sub(r"_(gen|generated|g)$", "", os.path.splitext(os.path.basename(path))[0])
