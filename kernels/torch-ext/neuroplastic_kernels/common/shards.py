"""What a process holds of a tensor that is split over processes (DTensor), and sums over the shards.

A plain tensor is held whole, and its sums are complete, so that one text serves both.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Sums = list[tuple[Tensor, Tensor]]  # each with the tensor over whose shards it is completed


class Part(NamedTuple):
    """What this process holds of a tensor: the entries from `start` on along dimension `dim`, and all along others."""

    tensor: Tensor
    dim: int | None = None  # None: all of the tensor is held
    start: int = 0

    def span(self, dim: int) -> slice:
        """The places along `dim` of the whole tensor that are held here."""
        start = self.start if dim == self.dim else 0
        return slice(start, start + self.tensor.shape[dim])

    def find(self, places: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """[H] int64, which of `places` along `dim` of the whole tensor are held here; [H], where in what is held.

        Waits for the device where the tensor is split along `dim`.
        """
        if dim != self.dim:
            return torch.arange(places.numel(), device=places.device), places
        span = self.span(dim)
        held = ((places >= span.start) & (places < span.stop)).nonzero().squeeze(1)
        return held, places[held] - span.start


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, be it split or replicated."""
    return hasattr(tensor, "device_mesh")


def local(value: Any) -> Tensor:
    """What this process holds of a tensor."""
    return value._local_tensor if is_sharded(value) else value


def split_over(tensor: Any) -> tuple[int, ...]:
    """The dimensions of the mesh over which a DTensor is split; none for a plain tensor."""
    placements = tensor.placements if is_sharded(tensor) else ()
    return tuple(dim for dim, placement in enumerate(placements) if not placement.is_replicate())


def part_of(tensor: Any) -> Part:
    """What this process holds of a tensor.

    Raises:
        ValueError: a tensor that is split more than once, or unevenly interleaved (FSDP over tensor parallelism).
    """
    dims = split_over(tensor)
    if not dims:
        return Part(local(tensor))
    placement = tensor.placements[dims[0]]
    if len(dims) > 1 or type(placement).__name__ != "Shard":
        raise ValueError(f"a tensor split once is needed, got one with the placements {tensor.placements}")
    size, rank = tensor.shape[placement.dim], tensor.device_mesh.get_local_rank(dims[0])
    longest = ceil(size / tensor.device_mesh.size(dims[0]))
    return Part(tensor._local_tensor, placement.dim, min(rank * longest, size))


def split_along(tensor: Any, dim: int) -> bool:
    """Whether other processes hold other places along `dim`."""
    return part_of(tensor).dim == dim


def wide(tensor: Tensor) -> torch.dtype:
    """A dtype in which sums hardly depend on their order: float64, where the device has it."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.device.type == "mps" else torch.float64


def entries(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    """The entries at `places` along `dim`, wide; 0 for those that other processes hold."""
    part = part_of(tensor)
    held, index = part.find(places, dim)
    found = part.tensor.index_select(dim, index).to(wide(part.tensor))
    if dim != part.dim:
        return found
    shape = [places.numel() if d == dim else size for d, size in enumerate(part.tensor.shape)]
    return found.new_zeros(shape).index_copy_(dim, held, found)


def put(tensor: Tensor, dim: int, places: Tensor, values: Tensor | float) -> None:
    """Writes `values`, with one entry along `dim` for each of `places`, where this process holds them."""
    part = part_of(tensor)
    held, index = part.find(places, dim)
    if isinstance(values, Tensor):
        part.tensor.index_copy_(dim, index, values.index_select(dim, held).to(part.tensor.dtype))
    else:
        part.tensor.index_fill_(dim, index, values)


def in_turn(works: Sequence[Iterator[Sums]], together: bool) -> None:
    """Runs works that yield sums once and go on when these are complete.

    together: all works reach their sums before the first goes on, and one reduction completes all; else one work ends before
    the next begins, which then finds what the earlier left.
    """
    if together:
        add_over_shards([each for work in works for each in next(work, [])])
    for work in works:
        for sums in work:
            add_over_shards(sums)


def add_over_shards(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Completes sums in place, each given with the tensor over whose shards it goes; see `add_up`."""
    parts = [(added_up_over(tensor, values.dtype), values) for values, tensor in sums if is_sharded(tensor)]
    for reduction in add_up(parts):
        reduction.finish()


class Reduction(NamedTuple):
    """An all-reduce: its handle, None once done; the numbers that it adds up; the parts of rows that these are."""

    work: Any
    numbers: Tensor
    parts: list[Tensor]

    def finish(self) -> None:
        if self.work is not None:
            self.work.wait()
        for part, numbers in zip(self.parts, self.numbers.split(list(map(Tensor.numel, self.parts))), strict=True):
            part.copy_(numbers.view_as(part))


def added_up_over(tensor: Any, dtype: torch.dtype) -> Any:
    """The mesh, its dimensions over which a tensor is split, and the dtype and device of what is added up over them."""
    mesh = tensor.device_mesh
    inside = mesh.get_coordinate() is not None
    dims = tuple(dim for dim, each in enumerate(tensor.placements) if inside and not each.is_replicate())
    return mesh, dims, dtype, tensor.device


def add_up(parts: Sequence[tuple[Any, Tensor]], waits: bool = True) -> list[Reduction]:
    """Starts to add parts up over the processes, each over those of its key, by one all-reduce for each key and dimension.

    parts: keys of `added_up_over`, and numbers that are replaced by their sums once the reductions are finished.
    """
    together: dict[Any, list[Tensor]] = {}
    for key, part in parts:
        together.setdefault(key, []).append(part)
    reductions = []
    for (mesh, dims, *_), each in together.items():
        if dims:
            # To the mesh's device: shards may wait in the host's memory.
            numbers = torch.cat([part.flatten() for part in each]).to(mesh.device_type)
            groups = [mesh.get_group(dim) for dim in dims]
            for group in groups[:-1]:
                dist.all_reduce(numbers, group=group)
            # On the CPU every reduction is waited for: gloo aborts a process that ends while one is under way.
            work = dist.all_reduce(numbers, group=groups[-1], async_op=numbers.is_cuda and not waits)
            reductions.append(Reduction(work, numbers, each))
    return reductions
