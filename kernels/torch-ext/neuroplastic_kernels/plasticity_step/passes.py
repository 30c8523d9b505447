"""The passes of a step over its tensors, and what a tensor's shard needs to know of the whole.

A form is a generator: each `next` makes one pass over all tensors, and the pass's name is yielded. Where tensors are shards,
whoever drives the form then adds the columns of the pass up over the processes that hold the other shards, in place.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# A row of what processes add up for one tensor: its non-finite gradient elements (`nonfinite`), then the five of `sums`.
COLUMNS = {"check": slice(0, 1), "signals": slice(1, 4), "squares": slice(4, 6), "apply": slice(1, 6)}


class Shard(NamedTuple):
    """A box of a tensor that this process holds. shape: of the whole tensor; starts: where the box begins in each dimension."""

    shape: tuple[int, ...]
    starts: tuple[int, ...]

    def origin(self, shape: Sequence[int]) -> int | None:
        """The number of the first element within the whole, where a box of `shape` is one run of its elements; else None."""
        if 0 in shape:
            return 0
        cut = [dim for dim, (size, full) in enumerate(zip(shape, self.shape, strict=True)) if size != full]
        if cut and any(size > 1 for size in shape[: cut[-1]]):
            return None
        return sum(start * math.prod(self.shape[dim + 1 :]) for dim, start in enumerate(self.starts))


def is_plastic(hyper: Any) -> bool:
    """Whether alpha and h are needed, and so the sums."""
    return bool(hyper.strength) or hyper.base == "gradient"


def measures(hyper: Any) -> bool:
    """Whether a step needs its own sums before its end."""
    return is_plastic(hyper) and (hyper.base == "gradient" or hyper.statistics == "exact")


def passes(hyper: Any) -> Iterator[str]:
    """The names of a step's passes, keys of COLUMNS, the same for all forms and processes."""
    if hyper.skip_nonfinite:
        yield "check"
    if measures(hyper):
        yield from ("signals", "squares")
    yield "apply"
