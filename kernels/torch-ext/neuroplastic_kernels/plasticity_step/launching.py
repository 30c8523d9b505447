"""Launching a Triton kernel once more, without what a first launch has to find out."""

from collections.abc import Hashable
from typing import Any


def relaunch(held: dict[Any, Any], key: Hashable, kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """`kernel[(programs,)](*arguments, **options)`, but for a known key by what its first launch compiled and loaded.

    For each launch Triton looks at the type, size and alignment of every argument and at all global constants, to find the
    compiled kernel: for kernels of many arguments, that is most of the work. Equal keys promise that it would find the same
    one. Interpreted kernels are never held.

    held: what launches so far have compiled, for one device. arguments: all of the kernel's, its constants included, in
    their order. options: how to compile, such as num_warps.
    """
    again = held.get(key)
    if again is not None:
        again(*arguments)
        return
    compiled = kernel[(programs,)](*arguments, **options)
    if compiled is not None:
        held[key] = compiled[(programs, 1, 1)]
