"""Whether something else has written tensors since we last looked at them, by torch's own counts."""

import math
from collections.abc import Sequence
from weakref import ref

from torch import Tensor


def writes_to(tensors: Sequence[Tensor]) -> list[float]:
    """How many writes to each tensor torch has counted; NaN, which equals nothing, where it counts none."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # tensors made in inference mode
        return [math.nan if tensor.is_inference() else tensor._version for tensor in tensors]


class WriteCounts:
    """Tensors as they were last remembered. Writes that torch does not count, such as those through `.data`, go unseen."""

    def __init__(self) -> None:
        self._tensors: list[ref[Tensor]] = []
        self._writes: list[float] = []

    def unwritten(self, tensors: Sequence[Tensor]) -> list[bool]:
        """Which tensors are those that were remembered in the same places, and unwritten since."""
        if len(tensors) != len(self._tensors):
            return [False] * len(tensors)
        now = zip(self._tensors, tensors, self._writes, writes_to(tensors), strict=True)
        return [held() is tensor and before == after for held, tensor, before, after in now]

    def remember(self, tensors: Sequence[Tensor]) -> None:
        self._tensors, self._writes = list(map(ref, tensors)), writes_to(tensors)

    def forget(self) -> None:
        self._tensors, self._writes = [], []
