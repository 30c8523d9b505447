"""Write a small synthetic anti-spoofing corpus in the layout of ASVspoof 2019 LA, for demonstrations and tests.

    root/neuroplastic_corpus.json                                        how it was made
    root/LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{train.trn,dev.trl,eval.trl}.txt
    root/LA/ASVspoof2019_LA_{train,dev,eval}/flac/LA_{T,D,E}_1000000.flac, ...

It is a toy: results on it say nothing about real forgeries. Read it with `load_asvspoof2019(root)`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soundfile

from ..corpora.asvspoof2019 import SPLITS, audio_folder, protocol_path
from .attacks import ATTACKS
from .spectral import Array
from .synthesis import Speaker, draw_plan, draw_speaker, record, render

MARKER = "neuroplastic_corpus.json"
CONTENT = {MARKER, "LA", "SOURCES.md", "licences", "utterances.csv"}
FORMAT_VERSION = 1
UTTERANCES = MappingProxyType({"train": 1920, "dev": 240, "eval": 240})
SPEAKERS = MappingProxyType({"train": 80, "dev": 10, "eval": 10})
SECONDS, SNR_DB = (1.0, 1.4), (30.0, 50.0)
ATTACKS_OF_SPLIT = MappingProxyType(
    {"train": ("A01", "A02", "A03"), "dev": ("A01", "A02", "A03"), "eval": ("A01", "A02", "A03", "A04")}
)

Progress = Callable[[int, int], object]


def write_corpus(
    root: str | Path,
    *,
    seed: int = 0,
    utterances: Mapping[str, int] = UTTERANCES,
    speakers: Mapping[str, int] = SPEAKERS,
    seconds: tuple[float, float] = SECONDS,
    snr_db: tuple[float, float] = SNR_DB,
    sampling_rate: int = 16000,
    attacks: Mapping[str, Sequence[str]] = ATTACKS_OF_SPLIT,
    progress: Progress | None = None,
) -> Path:
    """Write the corpus to `root` and return it as a Path; the same arguments give the same samples.

    Every second utterance of a split is bona fide, the others take the split's attacks in turn. No speaker occurs in
    two splits, and attack A04 occurs in "eval" only, unless `attacks` says otherwise. The whole is written beside `root`
    and renamed into place at the end, so a failure leaves nothing half-written; an earlier corpus of this package is
    replaced.

    Args:
        root: folder to create; it may exist if it is empty or holds an earlier corpus of this package.
        seed: any non-negative integer.
        utterances, speakers: how many for each of "train", "dev" and "eval"; utterances at least 2, speakers at least
            1.
        seconds: shortest and longest duration, at least 0.25.
        snr_db: lowest and highest ratio of speech to background noise; lower is harder.
        sampling_rate: in Hz, at least 8000.
        attacks: names for each split, of A01 to A04.
        progress: called as progress(done, total) after each utterance.

    Raises:
        ValueError: an argument is outside what is allowed.
        FileExistsError: `root` holds something else, or is a file.
    """
    root = Path(root)
    _check_arguments(seed, utterances, speakers, seconds, snr_db, sampling_rate)
    if set(attacks) != set(SPLITS) or not all(names and set(names) <= set(ATTACKS) for names in attacks.values()):
        raise ValueError(f"attacks must name some of {list(ATTACKS)} for each of {list(SPLITS)}, got {dict(attacks)}.")
    check_target(root)
    settings = {
        "kind": "synthetic",
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "utterances": dict(utterances),
        "speakers": dict(speakers),
        "seconds": list(seconds),
        "snr_db": list(snr_db),
        "sampling_rate": sampling_rate,
        "attacks": {split: list(attacks[split]) for split in SPLITS},
    }
    total = sum(utterances[split] for split in SPLITS)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        draft = Path(scratch) / "new"
        draft.mkdir()
        done = 0
        for split in SPLITS:
            count = utterances[split]
            report = None if progress is None else _shifted(progress, done, total)
            _write_split(
                draft, split, seed, count, speakers[split], seconds, snr_db, sampling_rate, attacks[split], report
            )
            done += count
        (draft / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rename(Path(scratch) / "old")
        draft.rename(root)
    return root


def write_recordings(folder: str | Path, *, seed: int = 0, sampling_rate: int = 16000) -> Path:
    """Writes bonafide.flac, known-attack.flac and unknown-attack.flac, of speakers that no split holds, and returns the folder.

    The attacks are one of the training split, and the one that only "eval" has.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (unknown,) = set(ATTACKS_OF_SPLIT["eval"]) - set(ATTACKS_OF_SPLIT["train"])
    kinds = {"bonafide": None, "known-attack": ATTACKS_OF_SPLIT["train"][0], "unknown-attack": unknown}
    for index, (name, attack) in enumerate(kinds.items()):
        rng = np.random.default_rng((seed, len(SPLITS), index))
        samples = _utterance(rng, draw_speaker(rng), attack, SECONDS, SNR_DB, sampling_rate)
        soundfile.write(folder / f"{name}.flac", samples, sampling_rate, subtype="PCM_16")
    return folder


def _write_split(
    root: Path,
    split: str,
    seed: int,
    count: int,
    speaker_count: int,
    seconds: tuple[float, float],
    snr_db: tuple[float, float],
    sampling_rate: int,
    attacks: Sequence[str],
    report: Callable[[int], object] | None,
) -> None:
    split_number = tuple(SPLITS).index(split)
    voices = [draw_speaker(np.random.default_rng((seed, split_number, 0, index))) for index in range(speaker_count)]
    folder = audio_folder(root / "LA", "LA", split)
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        rng = np.random.default_rng((seed, split_number, 1, index))
        attack = None if index % 2 == 0 else attacks[index // 2 % len(attacks)]
        voice = int(rng.integers(speaker_count))
        name = f"LA_{split[0].upper()}_{1_000_000 + index}"
        samples = _utterance(rng, voices[voice], attack, seconds, snr_db, sampling_rate)
        soundfile.write(folder / f"{name}.flac", samples, sampling_rate, subtype="PCM_16")
        key = "bonafide" if attack is None else "spoof"
        lines.append(f"LA_{100 * (split_number + 1) + voice:04d} {name} - {attack or '-'} {key}\n")
        if report is not None:
            report(index + 1)
    protocol = protocol_path(root / "LA", "LA", split)
    protocol.parent.mkdir(exist_ok=True)
    protocol.write_text("".join(lines), encoding="utf-8")


def _utterance(
    rng: np.random.Generator,
    speaker: Speaker,
    attack: str | None,
    seconds: tuple[float, float],
    snr_db: tuple[float, float],
    sampling_rate: int,
) -> Array:
    length = round(rng.uniform(*seconds) * sampling_rate)
    plan = draw_plan(rng, speaker, length, sampling_rate)
    make = render if attack is None else ATTACKS[attack]
    return record(rng, make(rng, speaker, plan, length, sampling_rate), sampling_rate, snr_db)


def _shifted(progress: Progress, start: int, total: int) -> Callable[[int], object]:
    return lambda done: progress(start + done, total)


def _check_arguments(
    seed: int,
    utterances: Mapping[str, int],
    speakers: Mapping[str, int],
    seconds: tuple[float, float],
    snr_db: tuple[float, float],
    sampling_rate: int,
) -> None:
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}.")
    for name, counts, least in (("utterances", utterances, 2), ("speakers", speakers, 1)):
        if set(counts) != set(SPLITS) or min(counts.values()) < least:
            raise ValueError(f"{name} must give at least {least} for each of {list(SPLITS)}, got {dict(counts)}.")
    if max(speakers.values()) > 100:
        raise ValueError(f"speakers must be at most 100 for each split, got {dict(speakers)}.")
    if not 0.25 <= seconds[0] <= seconds[1]:
        raise ValueError(f"seconds must be (shortest, longest) with 0.25 <= shortest <= longest, got {seconds}.")
    if not snr_db[0] <= snr_db[1]:
        raise ValueError(f"snr_db must be (lowest, highest) with lowest <= highest, got {snr_db}.")
    if sampling_rate < 8000:
        raise ValueError(f"sampling_rate must be at least 8000 Hz (formants reach 4 kHz), got {sampling_rate}.")


def check_target(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise FileExistsError(f"root={str(root)!r} is a file; give a folder that does not exist yet, or is empty.")
    content = {path.name for path in root.iterdir()}
    if content and not (MARKER in content and content <= CONTENT):
        raise FileExistsError(
            f"root={str(root)!r} holds other files than an earlier corpus made here: {', '.join(sorted(content)[:5])}; "
            "give a folder that does not exist yet, or is empty."
        )
