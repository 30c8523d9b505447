"""Where the tensors of a step lie in memory, as tables on their device: one launch serves all tensors of a kind.

A table is never written again: a step that needs another leaves those of a CUDA graph as they were. The addresses of gradients,
which often move, have a column of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided_planes import on_device
from . import eight_bit, reference
from .checks import MOMENTS
from .lists import VECTOR, Lists, State, is_sound, neuron_layout

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Geometry(NamedTuple):
    """block: elements at a time, a power of 2 >= 256; chunk: elements of one program, a multiple of block."""

    block: int
    chunk: int
    warps: int


DEVICE = Geometry(block=512, chunk=16384, warps=4)
INTERPRETER = Geometry(block=16384, chunk=16384, warps=4)  # its time goes by operations, not by elements


def geometry() -> Geometry:
    return INTERPRETER if triton.knobs.runtime.interpret else DEVICE


class Row(NamedTuple):
    """What a table says of one tensor. From param to factors addresses; trace, scales, skipped and factors may be 0.

    whole: the elements of the tensor that this is a run of, or itself; origin: where among them this begins.
    """

    param: int
    exp_avg: int
    exp_avg_sq: int
    trace: int
    scales: int
    sums: int
    nonfinite: int  # above 0 where the gradient of the whole tensor holds inf or NaN
    step: int
    skipped: int
    factors: int  # of `neurons` neurons, with `stride` elements from one to the next
    neurons: int
    stride: int
    numel: int
    whole: int
    origin: int
    first: int
    chunks: int  # from `first` on
    number: int  # the tensor's place in the caller's list


STATE = ("exp_avg", "exp_avg_sq", "trace", "scales", "sums", "nonfinite", "step", "skipped")


class Kind(NamedTuple):
    """What kernels are compiled for: tensors of one kind share their launches."""

    param: torch.dtype
    grad: torch.dtype
    traces: bool
    eight_bit: int  # elements of a block, 0 for float32 state
    aligned: bool


class Bucket(NamedTuple):
    """The chunks of one kind: so many, from `start` on."""

    kind: Kind
    start: int
    chunks: int


def is_taken(lists: Lists, number: int, skips: bool, rounds: bool) -> bool:
    """Whether the kernels take a tensor. Neurons are found in 32 bits; random numbers are for a run of the whole tensor."""
    param, grad, state = lists.params[number], lists.grads[number], lists.states[number]
    on_device = param.is_cuda or triton.knobs.runtime.interpret
    kinds = param.dtype in DTYPES and grad.dtype in DTYPES and (lists.factor(number) is None or param.numel() < 2**30)
    draws = "scales" in state or (rounds and param.dtype == torch.bfloat16)
    numbered = not draws or lists.origin(number) is not None
    return kinds and on_device and numbered and is_sound(param, grad, state, skips)


def kind_of(param: Tensor, grad: Tensor, state: State) -> Kind:
    wide = [param, grad, *(state[name] for name in MOMENTS if name in state)]
    aligned = all(tensor.data_ptr() % VECTOR == 0 for tensor in wide)
    block = eight_bit.block_of(param.shape) if "scales" in state else 0
    return Kind(param.dtype, grad.dtype, "trace" in state, block, aligned)


def row_of(lists: Lists, number: int, nonfinite: Tensor, first: int, chunks: int) -> Row:
    """nonfinite: a number for whole tensors, whose state holds none."""
    param, state = lists.params[number], {"nonfinite": nonfinite} | lists.states[number]
    addresses = {name: state[name].data_ptr() if name in state else 0 for name in STATE}
    factors, width, stride = neuron_layout(param, lists.factor(number))
    chunk = {"first": first, "chunks": chunks, "number": number}
    where = {"param": param.data_ptr(), "factors": factors, "neurons": width, "stride": stride, "numel": param.numel()}
    of_whole = {"whole": lists.whole(number), "origin": lists.origin(number) or 0}
    return Row(**where, **of_whole, **addresses, **chunk)


def numbers(values: Sequence[int], device: torch.device, capturing: bool) -> Tensor:
    """int64 tensor of these numbers, written without waiting for the device; in a CUDA graph they are part of the graph."""
    if not capturing:
        return on_device(values, device)
    written = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(written.unbind(), list(values))
    return written


@dataclass(eq=False)
class Table:
    """Some tensors of one device, and the chunks they are cut into.

    members: their places in the caller's list, sorted by kind: the rows. buckets: the kinds, in the order of their chunks.
    fields: int64 [tensors, COLUMNS]. owners: int64 [chunks], the row of each chunk's tensor. nonfinite: float32 [tensors] and
    partials: float32 [chunks, SUMS], what kernels leave for each other. addresses: of the gradients that `column` holds.
    """

    members: list[int]
    buckets: list[Bucket]
    fields: Tensor
    owners: Tensor
    nonfinite: Tensor
    partials: Tensor
    addresses: list[int] = field(default_factory=list)
    column: Tensor | None = None

    def gradients(self, addresses: Sequence[int], capturing: bool) -> Tensor:
        """int64 [tensors]: the addresses of gradients, 0 for none. addresses: of the caller's whole list."""
        mine = [addresses[member] for member in self.members]
        if self.column is not None and mine == self.addresses:
            return self.column
        column = numbers(mine, self.fields.device, capturing)
        if not capturing:
            self.addresses, self.column = mine, column
        return column


def table(members: Sequence[int], lists: Lists, capturing: bool) -> Table:
    """The table of the tensors at these places of the lists, all of one device and with a gradient."""
    params, grads, states, *_ = lists
    kinds = {member: kind_of(params[member], grads[member], states[member]) for member in members}
    members = sorted(members, key=lambda member: tuple(map(str, kinds[member])))
    rows, buckets, chunks, device = list[Row](), list[Bucket](), 0, params[members[0]].device
    nonfinite = torch.zeros(len(members), dtype=torch.float32, device=device)
    for member, flag in zip(members, nonfinite, strict=True):
        kind, count = kinds[member], -(-params[member].numel() // geometry().chunk)
        if not buckets or buckets[-1].kind != kind:
            buckets.append(Bucket(kind, chunks, 0))
        buckets[-1] = buckets[-1]._replace(chunks=buckets[-1].chunks + count)
        rows.append(row_of(lists, member, flag, chunks, count))
        chunks += count
    counts = numbers([row.chunks for row in rows], device, capturing)
    return Table(
        list(members),
        buckets,
        numbers([value for row in rows for value in row], device, capturing).view(len(rows), len(Row._fields)),
        torch.repeat_interleave(counts, output_size=chunks),
        nonfinite,
        torch.empty(chunks, reference.SUMS, dtype=torch.float32, device=device),
    )
