"""Where the tensors of one step lie in memory, as tables on their device: what lets one launch serve hundreds of tensors.

A plan cuts its tensors into chunks, one program each. `fields` holds a row of addresses and sizes per tensor, `owners` the
row of each chunk's tensor. Values travel to the device as arguments of `torch._foreach_add_`: writing a table never waits for
the device, and inside a CUDA graph the values become part of the graph.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Columns of `fields`. EXTRA: the scratch for u, or the scales of an 8-bit state. NUMBER: the place in the caller's list.
PARAM, GRAD, TRACE, EXP_AVG, EXP_AVG_SQ, EXTRA, STEP, NUMEL, FIRST_CHUNK, NUMBER = range(10)
FIELDS = 10
VECTOR = 16  # bytes of the widest load


class Streams(NamedTuple):
    """What one tensor's step reads and writes. `grad` is None while there is none, `scales` unless the state is 8-bit."""

    param: Tensor
    grad: Tensor | None
    trace: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    scales: Tensor | None


class Kind(NamedTuple):
    """What kernels are compiled for: tensors of one kind share their launches."""

    param: torch.dtype
    grad: torch.dtype
    eight_bit: bool
    aligned: bool


class Bucket(NamedTuple):
    """The chunks of one kind: so many, from `start` on."""

    kind: Kind
    start: int
    chunks: int


def kind_of(tensor: Streams) -> Kind:
    """The kind of one tensor; without a gradient, that of a gradient like the parameter."""
    grad = tensor.param if tensor.grad is None else tensor.grad
    wide = [tensor.param, grad, tensor.trace, tensor.exp_avg, tensor.exp_avg_sq]
    if tensor.scales is not None:
        wide.append(tensor.scales)
    aligned = all(stream.data_ptr() % VECTOR == 0 for stream in wide)
    return Kind(tensor.param.dtype, grad.dtype, tensor.scales is not None, aligned)


def padded(numel: int) -> int:
    """Elements of float32 scratch, so that the next tensor's scratch is aligned."""
    return -(-numel // VECTOR) * VECTOR


def write(slots: tuple[Tensor, ...], values: Sequence[int]) -> None:
    """Write whole numbers into int64 scalars without waiting for their device."""
    torch._foreach_zero_(slots)
    torch._foreach_add_(slots, list(values))


def buckets(kinds: Sequence[Kind], chunks: Sequence[int]) -> list[Bucket]:
    """The buckets of sorted kinds. chunks: of every tensor."""
    found = []
    for kind in dict.fromkeys(kinds):
        first, last = kinds.index(kind), len(kinds) - kinds[::-1].index(kind)
        found.append(Bucket(kind, sum(chunks[:first]), sum(chunks[first:last])))
    return found


class Plan:
    """The tables for those `members` of a list of tensors that lie on one device, and the buffers their step needs.

    Attributes:
        fields: int64 [tensors, FIELDS], sorted by kind. owners: int64 [chunks].
        partials: float32 [sums, chunks], for sums over chunks. update: float32, room for u.
        buckets: the kinds, in the order of their chunks.
    """

    def __init__(self, tensors: Sequence[Streams], members: Sequence[int], chunk: int, sums: int) -> None:
        kinds, device = {i: kind_of(tensors[i]) for i in members}, tensors[members[0]].param.device
        self.order = sorted(members, key=lambda i: tuple(map(str, kinds[i])))
        self.kinds, ordered = [kinds[i] for i in self.order], [tensors[i] for i in self.order]
        numels = [t.param.numel() for t in ordered]
        counts = [max(1, -(-numel // chunk)) for numel in numels]  # an empty tensor has a step to count
        self.chunks, self.buckets = sum(counts), buckets(self.kinds, counts)
        self.update = torch.empty(sum(padded(t.param.numel()) for t in ordered if t.scales is None), device=device)
        self.partials = torch.empty(sums, self.chunks, device=device)
        self.fields = torch.zeros(len(ordered), FIELDS, dtype=torch.int64, device=device)
        self._gradient_slots = self.fields[:, GRAD].unbind()
        columns = {
            PARAM: [t.param.data_ptr() for t in ordered],
            TRACE: [t.trace.data_ptr() for t in ordered],
            EXP_AVG: [t.exp_avg.data_ptr() for t in ordered],
            EXP_AVG_SQ: [t.exp_avg_sq.data_ptr() for t in ordered],
            EXTRA: self._extra(ordered),
            STEP: [t.step.data_ptr() for t in ordered],
            NUMEL: numels,
            FIRST_CHUNK: [sum(counts[:i]) for i in range(len(counts))],
            NUMBER: self.order,
        }
        for column, values in columns.items():
            write(self.fields[:, column].unbind(), values)
        repeats = torch.empty(len(ordered), dtype=torch.int64, device=device)
        write(repeats.unbind(), counts)
        self.owners = torch.repeat_interleave(repeats, output_size=self.chunks)

    def _extra(self, tensors: Sequence[Streams]) -> list[int]:
        extra, free = [], self.update.data_ptr()
        for tensor in tensors:
            extra.append(free if tensor.scales is None else tensor.scales.data_ptr())
            if tensor.scales is None:
                free += padded(tensor.param.numel()) * self.update.element_size()
        return extra

    def take_gradients(self, grads: Sequence[Tensor | None]) -> bool:
        """Let the table point at these gradients, 0 where there is none. False where one is of another kind than planned."""
        addresses = []
        for index, kind in zip(self.order, self.kinds, strict=True):
            grad, address = grads[index], 0
            if grad is not None:
                address = grad.data_ptr() or VECTOR  # an empty one has no address
                if grad.dtype != kind.grad or (kind.aligned and address % VECTOR) or not grad.is_contiguous():
                    return False
            addresses.append(address)
        write(self._gradient_slots, addresses)
        return True
