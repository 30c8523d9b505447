"""Random splits of corpora that come without any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARES = (0.7, 0.1, 0.2)  # of train, dev and eval
SPLITS = ("train", "dev", "eval")


def share(units: Sequence[str], seed: int, shares: tuple[float, float, float] = SHARES) -> list[str]:
    """A split for each row; rows of one unit, such as a speaker or a sentence, stay together.

    Units are shuffled by `seed` and cut so that the splits hold about these shares of the rows.
    """
    names, counts = np.unique(list(units), return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    middles = (np.cumsum(counts[order]) - counts[order] / 2) / counts.sum()
    places = np.searchsorted(np.cumsum(shares)[:-1], middles, side="right")
    split_of = {str(names[unit]): SPLITS[place] for unit, place in zip(order, places, strict=True)}
    return [split_of[unit] for unit in units]
