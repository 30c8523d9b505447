"""Training, dev and test utterances of a stream: every attack has all three, whatever the corpus's own splits."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from .settings import Stream

PARTS = ("train", "dev", "test")
SHARES = (0, 0, 1, 2)  # of four utterances or speakers, two go into training, one into dev, one into the test
Rows = NDArray[np.int64]


class Parts(NamedTuple):
    """All rows, and which of them are in each part: spoofed[part][attack], and bona_fide[part][attack], what the attack is told
    from: all bona fide speech, or, where stages are corpora, the corpus's own."""

    data: Dataset
    spoofed: dict[str, dict[str, Rows]]
    bona_fide: dict[str, dict[str, Rows]]


def parts_of(data: Dataset, stream: Stream) -> Parts:
    """The parts of the pooled splits of a corpus. A speaker's, or an utterance's, part hangs on the name alone.

    Raises:
        ValueError: an attack that the corpus lacks, or one that a part would lack.
    """
    named = [attack for stage in (stream.start, *stream.stages) for attack in stage]
    if stream.by not in data.column_names:
        raise ValueError(f"by: {stream.by} needs joined corpora; give several folders as data")
    attacks, labels = np.asarray(data[stream.by][:]), np.asarray(data["label"][:])
    missing = sorted(set(named) - set(attacks[labels == 1]))
    if missing:
        held = ", ".join(sorted(set(attacks[labels == 1])))
        raise ValueError(f"the data have no {stream.by} {', '.join(missing)}; they have {held}")
    if "-" in named:
        raise ValueError(
            "'-' is speech whose attack the data do not tell, and no stage; join corpora and take by: corpus"
        )
    column = "speaker" if stream.apart == "speaker" else "file_name"
    names = data[column][:] if column in data.column_names else ["-"]
    if set(names) == {"-"}:
        raise ValueError("the corpus does not tell speakers; take apart: utterance")
    part = np.array([SHARES[zlib.crc32(name.encode()) % len(SHARES)] for name in names])
    parts = Parts(data, {}, {})
    for index, name in enumerate(PARTS):
        here = part == index
        speech = {"": np.flatnonzero((labels == 0) & here)}
        if stream.by == "corpus":
            speech = {corpus: np.flatnonzero((labels == 0) & (attacks == corpus) & here) for corpus in named}
        parts.bona_fide[name] = {attack: speech[attack if stream.by == "corpus" else ""] for attack in named}
        parts.spoofed[name] = {attack: np.flatnonzero((labels == 1) & (attacks == attack) & here) for attack in named}
        told = {f"bona fide speech {corpus}".strip(): rows for corpus, rows in speech.items()}
        empty = [what for what, rows in (*parts.spoofed[name].items(), *told.items()) if len(rows) < 2]
        if empty:
            raise ValueError(
                f"the {name} part would hold fewer than 2 utterances of {', '.join(empty)}, with apart: {stream.apart}; "
                + ("take apart: utterance" if column == "speaker" else "take more data")
            )
    return parts


def drawn(rows: Rows, count: int, *words: int) -> Rows:
    """At most `count` of the rows, in an order that hangs on the words alone."""
    return np.random.default_rng(words).permutation(rows)[:count]


def speech_of(parts: Parts, part: str, attacks: Sequence[str]) -> list[Rows]:
    """The bona fide speech that these attacks are told from: one array, or one for each corpus."""
    held = [parts.bona_fide[part][attack] for attack in attacks]
    return list({id(rows): rows for rows in held}.values())


def examples_of(parts: Parts, attacks: Sequence[str], count: int, seed: int, stage: int) -> Rows:
    """At most `count` training utterances of each class: of these attacks together, and bona fide."""
    spoofed = np.concatenate([parts.spoofed["train"][attack] for attack in attacks])
    bona_fide = np.concatenate(speech_of(parts, "train", attacks))
    return np.concatenate([drawn(bona_fide, count, seed, stage, 0), drawn(spoofed, count, seed, stage, 1)])


def trials_of(parts: Parts, part: str, attacks: Sequence[str], count: int) -> Dataset:
    """What is scored of a part: at most `count` utterances of each attack, and four times as many bona fide ones, where stages
    are corpora of each."""
    bona_fide = [drawn(rows, 4 * count, 0) for rows in speech_of(parts, part, attacks)]
    spoofed = [drawn(parts.spoofed[part][attack], count, 0) for attack in attacks]
    return parts.data.select(np.concatenate([*bona_fide, *spoofed]))
