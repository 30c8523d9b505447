"""Speakers and copies that two splits of a corpus share: an error rate on such data says too little."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from datasets import Dataset

logger = logging.getLogger(__name__)


def warn_of_leaks(splits: Mapping[str, Dataset]) -> None:
    """Counts and names files of equal content, and speakers, that stand in two splits.

    splits: rows by split, with `digest` as `keep_readable` leaves it, or without; see `rows`.
    """
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if "digest" in one.column_names and "digest" in other.column_names:
            copies = np.flatnonzero(np.isin(other["digest"][:], one["digest"][:]))
            if copies.size:
                names = other.select(copies[:5])["file_name"][:]
                logger.warning(
                    "%d of %d files of %s are copies of files of %s, such as %s: take them out of one of the splits",
                    copies.size,
                    len(other),
                    second,
                    first,
                    _some(names),
                )
        shared = sorted((set(one["speaker"][:]) & set(other["speaker"][:])) - {"-"})
        if shared:
            logger.warning(
                "%s and %s share %d speakers, such as %s: the error rate on unseen speakers may be higher",
                first,
                second,
                len(shared),
                _some(shared),
            )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(str, names[:most]))
