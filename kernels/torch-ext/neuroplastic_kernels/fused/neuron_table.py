"""The table of tensors that one launch of `neuron_reinit` works on: which they are, where they lie, what to do with them."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ..neurons import Init, NeuronTensors
from .typed_memory import DTYPE_CODES

ROWS, BIAS, COLUMNS, ZERO, MEAN = range(5)  # what a program does with its tensor
SHARES = 4


class Item(NamedTuple):
    """One tensor of the table. A stride is in elements; an address of 0 means there is no such tensor."""

    address: int
    dtype: int
    role: int
    neurons: int
    lanes: int
    neuron_stride: int
    lane_stride: int
    mask: int
    survivors: int
    donors: int
    site: int  # word of the random counter
    place: int  # of the site in the call's list
    bias: int  # ROWS: up_bias; COLUMNS: down_bias
    bias_dtype: int
    bias_stride: int
    mean_output: int
    shares: int  # programs that divide the neurons of a block of lanes among them

    @property
    def lanes_lie_together(self) -> bool:
        """Whether neighbours in memory belong to one neuron, as in the rows of an up weight."""
        return self.lane_stride < self.neuron_stride


def prepared(tensors: NeuronTensors) -> NeuronTensors:
    """The same site, with per-neuron arguments as the kernel reads them."""
    mean_output = None if tensors.mean_output is None else tensors.mean_output.float().contiguous()
    donors = None if tensors.donors is None else tensors.donors.contiguous()
    return tensors._replace(
        mask=tensors.mask.contiguous(), survivors=tensors.survivors.contiguous(), mean_output=mean_output, donors=donors
    )


def items(tensors: NeuronTensors, place: int, init: Init, silence: bool) -> Iterator[Item]:
    """The rows of the table for one site. place: its position in the call's list; silence: outgoing columns become zero."""
    targets: list[tuple[Tensor | None, int, int, Tensor | None]] = [
        (tensors.up_weight, 0, ROWS, tensors.up_bias),
        (tensors.up_bias, 0, BIAS, None),
    ]
    if silence or init == "split":
        targets.append((tensors.down_weight, 1, COLUMNS, tensors.down_bias))
    targets += [(tensor, dim, MEAN if fill == "mean" else ZERO, None) for tensor, dim, fill in tensors.state]
    for tensor, dim, role, bias in targets:
        if tensor is None or tensor.numel() == 0:
            continue
        neurons, lanes, neuron_stride, lane_stride = _as_lanes(tensor, dim)
        yield Item(
            address=tensor.data_ptr(), dtype=DTYPE_CODES[tensor.dtype], role=role,
            neurons=neurons, lanes=lanes, neuron_stride=neuron_stride, lane_stride=lane_stride,
            mask=tensors.mask.data_ptr(), survivors=tensors.survivors.data_ptr(), donors=_address(tensors.donors),
            site=tensors.site, place=place,
            bias=_address(bias), bias_dtype=0 if bias is None else DTYPE_CODES[bias.dtype],
            bias_stride=0 if bias is None else bias.stride(0), mean_output=_address(tensors.mean_output),
            # Sums over neurons need one owner, and neurons that lie together are few reads.
            shares=1 if role in (COLUMNS, MEAN) or lane_stride >= neuron_stride else SHARES,
        )  # fmt: skip


def _as_lanes(tensor: Tensor, dim: int) -> tuple[int, int, int, int]:
    """(neurons, lanes, stride of neurons, stride of lanes) of a tensor whose dimension `dim` counts neurons."""
    neurons, neuron_stride = tensor.shape[dim], tensor.stride(dim)
    if tensor.ndim == 1:
        return neurons, 1, neuron_stride, neuron_stride
    lanes = tensor.shape[1 - dim]
    return neurons, lanes, neuron_stride, neuron_stride if lanes == 1 else tensor.stride(1 - dim)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
