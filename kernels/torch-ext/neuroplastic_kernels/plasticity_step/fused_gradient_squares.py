"""The sum of squares of all gradients, in one launch for all of a dtype: what `plasticity_step` clips by.

`options.gradient_squares` in Triton. Each program adds up one chunk in float32; the sums of the chunks are
added in a fixed order. Nothing waits for the device.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.tensor_places import tensor_places
from .chunk_access import field_pointer, load, locate
from .geometry import DTYPES, geometry, is_captured, is_readable
from .launching import relaunch
from .lists import check_dense
from .options import gradient_squares as gradient_squares_reference
from .pointer_tables import GRAD, VECTOR, ChunkTable

_GRAD = tl.constexpr(GRAD)


@triton.jit
def _add_squares(total, grad, offsets, mask):
    g = load(grad, offsets, mask)
    return total + g * g


@triton.jit(do_not_specialize=("start_chunk",))
def squares_kernel(
    fields, owners, sums, start_chunk,
    GRAD: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of squares of each chunk of a gradient. fields, owners: of a `ChunkTable`; sums: float32 [chunks]."""
    chunk = start_chunk + tl.program_id(0)
    row, _, _, start, size = locate(fields, owners, chunk, CHUNK)
    lanes, full, total = tl.arange(0, BLOCK), size // BLOCK * BLOCK, tl.zeros([BLOCK], tl.float32)
    grad = field_pointer(row, _GRAD, start, GRAD, ALIGNED)
    for offset in range(0, full, BLOCK):
        total = _add_squares(total, grad, offset + lanes, None)
    for offset in range(full, size, BLOCK):
        total = _add_squares(total, grad, offset + lanes, offset + lanes < size)
    tl.store(sums + chunk, tl.sum(total))


class Kind(NamedTuple):
    """What the kernel is compiled for."""

    grad: torch.dtype
    aligned: bool


class Table(ChunkTable):
    """The table of those `members` of a list of gradients that lie on one device; float32 `sums` [chunks] and their `total`."""

    def __init__(self, grads: Sequence[Tensor], members: Sequence[int]) -> None:
        device = grads[members[0]].device
        kinds = {i: Kind(grads[i].dtype, grads[i].data_ptr() % VECTOR == 0) for i in members}
        super().__init__({i: grads[i].numel() for i in members}, kinds, geometry().chunk, device)
        self.sums, self.total = torch.empty(self.chunks, device=device), torch.empty((), device=device)

    def add_up(self) -> Tensor:
        """`total` of the gradients as they are now."""
        shape = geometry()
        for kind, start, chunks in self.buckets:
            relaunch(
                self.compiled, start, squares_kernel, chunks,
                self.fields, self.owners, self.sums, start,
                DTYPES[kind.grad], kind.aligned, shape.chunk, shape.block,
                num_warps=shape.warps,
            )  # fmt: skip
        return torch.sum(self.sums, 0, out=self.total)


@dataclass
class Prepared:
    """What stays valid while a list holds gradients of the same kinds: the tables, and which gradients have none."""

    key: list[Any]
    tables: list[Table]
    others: list[int]
    places: Any = None  # of the gradients that the tables point at


@torch.inference_mode(False)  # as in `fused`
def prepare(key: list[Any], grads: Sequence[Tensor]) -> Prepared:
    check_dense(grads)
    devices: dict[torch.device, list[int]] = {}
    for index, grad in enumerate(grads):
        if is_readable(grad):
            devices.setdefault(grad.device, []).append(index)
    tables = [Table(grads, members) for members in devices.values()]
    taken = {index for members in devices.values() for index in members}
    return Prepared(key, tables, [index for index in range(len(grads)) if index not in taken])


def refreshed(workspace: dict[Any, Any], grads: Sequence[Tensor]) -> Prepared:
    """What was prepared for gradients like these, or new, its tables pointing at them. As in `fused`."""
    places, capturing, held = tensor_places([*grads]), is_captured(grads[0]), workspace.get("squares")
    if held is not None and held.places == places and not capturing:
        return held
    key = [*map(Tensor.numel, grads), *map(attrgetter("dtype"), grads), *map(attrgetter("device"), grads)]
    if held is None or capturing or held.key != key or not all(t.take_gradients(grads) for t in held.tables):
        held = prepare(key, grads)
        for table in held.tables:
            table.take_gradients(grads)
        if capturing:
            workspace.setdefault("captured squares", []).append(held)
        else:
            workspace["squares"] = held
    held.places = places
    return held


@torch.no_grad()
def gradient_squares(grads: Sequence[Tensor], *, workspace: dict[Any, Any] | None = None) -> Tensor:
    """`options.gradient_squares`, but for the order of sums; the next call overwrites what it returns.

    `workspace` holds the tables: one dict for each list of gradients.
    """
    if not grads:
        return gradient_squares_reference(grads)
    prepared = refreshed({} if workspace is None else workspace, grads)
    totals = []
    for table in prepared.tables:
        with torch.cuda.device(table.total.device) if table.total.is_cuda else nullcontext():
            totals.append(table.add_up())
    if prepared.others:
        totals.append(gradient_squares_reference([grads[index] for index in prepared.others]))
    device = totals[0].device
    return sum((total.to(device, torch.float32, non_blocking=True) for total in totals[1:]), start=totals[0])
