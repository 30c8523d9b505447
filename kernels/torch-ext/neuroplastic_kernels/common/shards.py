"""What a process holds of a tensor that is split over processes (DTensor), and sums over the shards.

A plain tensor is held whole, and its sums are complete, so that one text serves both.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Part(NamedTuple):
    """What this process holds of a tensor: the entries from `start` on along dimension `dim`, and all along the others."""

    tensor: Tensor
    dim: int = 0
    start: int = 0

    def span(self, dim: int) -> slice:
        """The places along `dim` of the whole tensor that are held here."""
        start = self.start if dim == self.dim else 0
        return slice(start, start + self.tensor.shape[dim])

    def find(self, places: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Which of `places` along `dim` of the whole tensor are held here ([K] bool), and where in what is held."""
        span = self.span(dim)
        held = (places >= span.start) & (places < span.stop)
        return held, places[held] - span.start


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, be it split or replicated."""
    return hasattr(tensor, "device_mesh")


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
        return Part(tensor._local_tensor if is_sharded(tensor) else tensor)
    placement = tensor.placements[dims[0]]
    if len(dims) > 1 or type(placement).__name__ != "Shard":
        raise ValueError(f"a tensor split once is needed, got one with the placements {tensor.placements}")
    size, rank = tensor.shape[placement.dim], tensor.device_mesh.get_local_rank(dims[0])
    longest = ceil(size / tensor.device_mesh.size(dims[0]))
    return Part(tensor._local_tensor, placement.dim, min(rank * longest, size))


def split_along(tensor: Any, dim: int) -> bool:
    """Whether other processes hold other places along `dim`."""
    return bool(split_over(tensor)) and part_of(tensor).dim == dim


def wide(tensor: Tensor) -> torch.dtype:
    """A dtype in which sums hardly depend on their order: float64, where the device has it."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.device.type == "mps" else torch.float64


def entries(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    """The entries at `places` along `dim`, wide; 0 for those that other processes hold."""
    part = part_of(tensor)
    held, index = part.find(places, dim)
    shape = [places.numel() if d == dim else size for d, size in enumerate(part.tensor.shape)]
    found = part.tensor.new_zeros(shape, dtype=wide(part.tensor))
    return found.index_copy_(dim, held.nonzero().squeeze(1), part.tensor.index_select(dim, index).to(found.dtype))


def put(tensor: Tensor, dim: int, places: Tensor, values: Tensor | float) -> None:
    """Writes `values`, with one entry along `dim` for each of `places`, where this process holds them."""
    part = part_of(tensor)
    held, index = part.find(places, dim)
    if isinstance(values, Tensor):
        part.tensor.index_copy_(dim, index, values.index_select(dim, held.nonzero().squeeze(1)).to(part.tensor.dtype))
    else:
        part.tensor.index_fill_(dim, index, values)


def add_over_shards(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Completes sums in place, each given with the tensor over whose shards it goes: one all-reduce for each mesh and dtype."""
    together: dict[Any, list[Tensor]] = {}
    for values, tensor in sums:
        for dim in split_over(tensor):
            group = tensor.device_mesh.get_group(dim)  # type: ignore[attr-defined]
            together.setdefault((group, values.dtype, values.device), []).append(values)
    for (group, *_), parts in together.items():
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat, group=group)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))
