"""Where the tensors of one step lie in memory, as tables on their device: what lets one launch serve hundreds of tensors.

A table cuts its tensors into chunks, one program each. Values travel to the device as arguments of `torch._foreach_add_`:
writing a table never waits for the device, and inside a CUDA graph the values become part of the graph.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .formulas import NeuronFactor
from .write_counts import WriteCounts

# Columns of a table. EXTRA: the scratch for u, or the scales of an 8-bit state. NUMBER: the place in the caller's list.
# FACTORS: the address of the factors of NEURONS neurons, 0 for none; STRIDE elements lie between a neuron and the next.
PARAM, GRAD, TRACE, EXP_AVG, EXP_AVG_SQ, EXTRA, STEP, NUMEL, FIRST_CHUNK, NUMBER, FACTORS, NEURONS, STRIDE = range(13)
FIELDS = 13
VECTOR = 16  # bytes of the widest load


class Streams(NamedTuple):
    """What one tensor's step reads and writes. `grad` is None while there is none, `scales` unless the state is 8-bit."""

    param: Tensor
    grad: Tensor | None
    trace: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    scales: Tensor | None = None
    neurons: NeuronFactor | None = None


class Kind(NamedTuple):
    """What kernels are compiled for: tensors of one kind share their launches."""

    param: torch.dtype
    grad: torch.dtype
    eight_bit: bool
    aligned: bool


class Bucket(NamedTuple):
    """The chunks of one kind: so many, from `start` on."""

    kind: Any
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


def add(slots: Sequence[Tensor], values: Sequence[int]) -> None:
    """Add whole numbers to int64 scalars without waiting for their device."""
    if slots:
        torch._foreach_add_(tuple(slots), list(values))


def filter_none(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes the items at these places of a list, at least one, out of it."""
    return itemgetter(*places) if len(places) > 1 else lambda items: (items[places[0]],)


def buckets(kinds: Sequence[Any], chunks: Sequence[int]) -> list[Bucket]:
    """The buckets of sorted kinds. chunks: of every tensor."""
    found = []
    for kind in dict.fromkeys(kinds):
        first, last = kinds.index(kind), len(kinds) - kinds[::-1].index(kind)
        found.append(Bucket(kind, sum(chunks[:first]), sum(chunks[first:last])))
    return found


class ChunkTable:
    """Numbers of some tensors on one device, and the chunks they are cut into.

    Attributes:
        members: the places of the tensors in the caller's list, sorted by kind; the rows of `fields`.
        kinds: theirs, with the gradient's dtype as `grad` and `aligned`. buckets: the kinds, in the order of their chunks.
        pick: takes theirs from a list. gradients: where their gradients lie, 0 for none.
        compiled: what launches for this table have compiled, see `launching.relaunch`.
        fields: int64 [tensors, FIELDS]. owners: int64 [chunks], the row of each chunk's tensor.
    """

    def __init__(self, numels: Mapping[int, int], kinds: Mapping[int, Any], chunk: int, device: Any) -> None:
        self.members = sorted(kinds, key=lambda member: tuple(map(str, kinds[member])))
        self.kinds = [kinds[member] for member in self.members]
        self.numels = [numels[member] for member in self.members]
        counts = [max(1, -(-numel // chunk)) for numel in self.numels]  # an empty tensor has a step to count
        self.pick, self.compiled = picker(self.members), dict[Any, Any]()
        self.chunks, self.buckets = sum(counts), buckets(self.kinds, counts)
        self.fields = torch.zeros(len(counts), FIELDS, dtype=torch.int64, device=device)
        self._slots, self.gradients = self.fields[:, GRAD].unbind(), [0] * len(counts)
        self.fill(NUMEL, self.numels)
        self.fill(FIRST_CHUNK, [sum(counts[:row]) for row in range(len(counts))])
        repeats = torch.zeros(len(counts), dtype=torch.int64, device=device)
        add(repeats.unbind(), counts)
        self.owners = torch.repeat_interleave(repeats, output_size=self.chunks)

    def fill(self, column: int, values: Sequence[int]) -> None:
        """Write a new table's column, a value for each row."""
        add(self.fields[:, column].unbind(), values)

    def take_gradients(self, grads: Sequence[Tensor | None]) -> bool:
        """Let the rows point at these gradients, 0 where there is none. False where one is not of the kind planned for."""
        mine = self.pick(grads)
        if not all(map(Tensor.is_contiguous, filter_none(mine))):
            return False
        addresses = [0 if grad is None else grad.data_ptr() or VECTOR for grad in mine]  # an empty one has no address
        for grad, address, kind, numel in zip(mine, addresses, self.kinds, self.numels, strict=True):
            if grad is None:
                continue
            same = grad.dtype == kind.grad and grad.numel() == numel and grad.device == self.fields.device
            if not same or (kind.aligned and address % VECTOR):
                return False
        if addresses != self.gradients:
            moved = [row for row, (old, new) in enumerate(zip(self.gradients, addresses, strict=True)) if old != new]
            add([self._slots[row] for row in moved], [addresses[row] - self.gradients[row] for row in moved])
            self.gradients = addresses
        return True


class Plan(ChunkTable):
    """The table of a step for those `members` of a list of tensors that lie on one device, and the buffers it needs.

    Attributes:
        partials: float32 [sums, chunks], for sums over chunks. update: float32, room for u.
        counts: of the writes to each trace, and to its scales, when the sums in `partials` were theirs.
    """

    def __init__(self, tensors: Sequence[Streams], members: Sequence[int], chunk: int, sums: int) -> None:
        device = tensors[members[0]].param.device
        super().__init__(
            {member: tensors[member].param.numel() for member in members},
            {member: kind_of(tensors[member]) for member in members},
            chunk,
            device,
        )
        rows = [tensors[member] for member in self.members]
        self.counts = WriteCounts()
        self.partials = torch.empty(sums, self.chunks, device=device)
        self.update = torch.empty(sum(padded(t.param.numel()) for t in rows if t.scales is None), device=device)
        self.fill(PARAM, [t.param.data_ptr() for t in rows])
        self.fill(TRACE, [t.trace.data_ptr() for t in rows])
        self.fill(EXP_AVG, [t.exp_avg.data_ptr() for t in rows])
        self.fill(EXP_AVG_SQ, [t.exp_avg_sq.data_ptr() for t in rows])
        self.fill(EXTRA, self._extra(rows))
        self.fill(STEP, [t.step.data_ptr() for t in rows])
        self.fill(NUMBER, self.members)
        for column, values in zip((FACTORS, NEURONS, STRIDE), zip(*map(neuron_fields, rows), strict=True), strict=True):
            self.fill(column, values)

    def _extra(self, tensors: Sequence[Streams]) -> list[int]:
        extra, free = [], self.update.data_ptr()
        for tensor in tensors:
            extra.append(free if tensor.scales is None else tensor.scales.data_ptr())
            if tensor.scales is None:
                free += padded(tensor.param.numel()) * self.update.element_size()
        return extra


def neuron_fields(tensor: Streams) -> tuple[int, int, int]:
    """FACTORS, NEURONS and STRIDE of one tensor."""
    if tensor.neurons is None:
        return 0, 1, 1
    values, dim = tensor.neurons
    return values.data_ptr(), max(1, values.numel()), max(1, tensor.param.stride(dim))
