"""The table of tensors that a launch of `neuron_reinit` works on: which they are, where they lie, what to do with them.

Sites may share memory: in a chain of layers one's outgoing weights are the next one's incoming. Then what a site finds
depends on what an earlier one left, and two programs of one launch must not touch the same element. So the table is cut into
successive launches, and work that shares memory with earlier work comes in a later launch; without sharing there is one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ..common.strided_planes import Plane, planes
from ..common.typed_memory import DTYPE_CODES
from .neurons import Init, NeuronTensors, sample_groups
from .reference import weight_word

ROWS, COLUMNS, ZERO, MEAN = range(4)  # what a program does with its tensor
PROGRAMS = 4
PARTIAL_NEURONS = 32  # neurons of one partial of the statistics for init="layer"


class Item(NamedTuple):
    """One plane of a tensor, as a row of the table. A stride is in elements; an address of 0 means there is no such tensor."""

    address: int
    dtype: int
    role: int
    neurons: int
    lanes: int
    neuron_stride: int
    lane_stride: int
    entries: int  # of a neuron in the whole tensor; the plane's are first_entry + lane * entry_step
    first_entry: int
    entry_step: int
    start: int  # of the site's neurons among those of all sites
    groups: int  # of neurons to sample from, and how many of them are taken (neurons.spread)
    taken: int
    site: int  # words of the random counter
    word: int
    bias: int  # COLUMNS: the down_bias to fold into
    bias_dtype: int
    bias_stride: int
    programs: int  # programs that divide the neurons of a block of lanes among them
    first_partial: int = 0  # ROWS: of the plane's statistics,
    weight_first_partial: int = 0  # and of the whole weight's, with their number
    weight_partials: int = 0

    @property
    def lanes_lie_together(self) -> bool:
        """Whether neighbours in memory belong to one neuron, as in the rows of an up weight."""
        return self.lane_stride < self.neuron_stride

    @property
    def partials(self) -> int:
        """How many partials the plane's statistics have."""
        return -(-self.neurons // PARTIAL_NEURONS) if self.role == ROWS else 0


class Work(NamedTuple):
    """The items of one tensor, and the memory they touch: (first byte, byte after the last) of each piece."""

    items: list[Item]
    spans: list[tuple[int, int]]


class Launch(NamedTuple):
    """Part of a table."""

    first: int
    items: int
    weights: int  # how many of them, the first ones, are of role ROWS


def table(sites: Sequence[NeuronTensors], init: Init, silence: bool) -> tuple[list[Item], list[Launch]]:
    """The rows of the table, launch by launch. silence: outgoing columns become zero."""
    work: list[Work] = []
    start = part = 0
    for tensors in sites:
        for items, spans in _work(tensors, start, init, silence):
            weight_partials = sum(item.partials for item in items)
            placed = [
                item._replace(
                    first_partial=part + i * item.partials, weight_first_partial=part, weight_partials=weight_partials
                )
                for i, item in enumerate(items)
            ]
            work.append(Work(placed, spans))
            part += weight_partials
        start += tensors.mask.numel()
    rows: list[Item] = []
    launches = []
    numbers = launch_numbers([piece.spans for piece in work])
    for number in range(max(numbers, default=-1) + 1):
        together = [item for piece, own in zip(work, numbers, strict=True) if own == number for item in piece.items]
        together.sort(key=lambda item: item.role)
        launches.append(Launch(len(rows), len(together), sum(item.role == ROWS for item in together)))
        rows += together
    return rows, launches


def launch_numbers(spans: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """For pieces of work in their order: the first launch by which all earlier work on memory that a piece touches is done.

    spans: the memory that each piece touches. Memory counts as shared where spans meet, even if elements between do not.
    """
    earlier: list[set[int]] = [set() for _ in spans]
    reaching: list[tuple[int, int]] = []
    for start, stop, piece in sorted((*span, piece) for piece, own in enumerate(spans) for span in own):
        reaching = [(end, other) for end, other in reaching if end > start]
        for _, other in reaching:
            if other != piece:
                earlier[max(piece, other)].add(min(piece, other))
        reaching.append((stop, piece))
    numbers: list[int] = []
    for others in earlier:
        numbers.append(max((numbers[other] + 1 for other in others), default=0))
    return numbers


def _work(tensors: NeuronTensors, start: int, init: Init, silence: bool) -> Iterator[Work]:
    """All work on one site, in the order of the reference, without partials. start: its first neuron."""
    bias_role = {"split": ROWS, "layer": MEAN}.get(init, ZERO)
    targets: list[tuple[Tensor | None, int, int, int]] = []
    for entry, up in enumerate(tensors.incoming):
        targets += [(up.weight, 0, ROWS, weight_word(entry)), (up.bias, 0, bias_role, 0)]
    if silence or init == "split":
        targets.append((tensors.down_weight, 1, COLUMNS, 0))
    targets += [(tensor, dim, MEAN if fill == "mean" else ZERO, 0) for tensor, dim, fill in tensors.state]
    for tensor, dim, role, word in targets:
        if tensor is not None and tensor.numel():
            folded = tensors.down_bias if role == COLUMNS and silence and tensors.mean_output is not None else None
            items = [_item(tensor, plane, role, folded, start, tensors.site, word) for plane in planes(tensor, dim)]
            yield Work(items, [_span(touched) for touched in (tensor, folded) if touched is not None])


def _item(tensor: Tensor, plane: Plane, role: int, bias: Tensor | None, start: int, site: int, word: int) -> Item:
    groups, taken = sample_groups(plane.neurons)
    # Sums over neurons need one owner, and neurons that lie together are few reads.
    shared = role in (ROWS, ZERO) and plane.lane_stride < plane.neuron_stride
    return Item(
        address=tensor.data_ptr() + plane.offset * tensor.element_size(),
        dtype=DTYPE_CODES[tensor.dtype],
        role=role,
        neurons=plane.neurons,
        lanes=plane.lanes,
        neuron_stride=plane.neuron_stride,
        lane_stride=plane.lane_stride,
        entries=tensor.numel() // plane.neurons,
        first_entry=plane.first,
        entry_step=plane.step,
        start=start,
        groups=groups,
        taken=taken,
        site=site,
        word=word,
        bias=0 if bias is None else bias.data_ptr(),
        bias_dtype=0 if bias is None else DTYPE_CODES[bias.dtype],
        bias_stride=0 if bias is None else bias.stride(0),
        programs=PROGRAMS if shared else 1,
    )


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor's elements, and the one after the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
