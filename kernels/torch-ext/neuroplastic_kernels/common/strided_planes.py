"""Tensors of any number of dimensions and any strides, seen as planes: two dimensions each, neurons and lanes.

A kernel finds them in a table of whole numbers on its device.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Plane(NamedTuple):
    """Part of a tensor. Strides and offset in elements.

    A neuron's entries are numbered in the order of the tensor's other dimensions; lane k of the plane is its entry number
    first + k * step, whatever the strides.
    """

    offset: int
    neurons: int
    lanes: int
    neuron_stride: int
    lane_stride: int
    first: int
    step: int


def planes(tensor: Tensor, dim: int) -> Iterator[Plane]:
    """The planes of a tensor whose dimension `dim` counts the neurons: one, where its other dimensions join into one."""
    dims = _joined(tensor, dim) or [(1, tensor.stride(dim), 1)]
    lanes, lane_stride, step = dims.pop(max(range(len(dims)), key=lambda i: dims[i][0]))
    for index in itertools.product(*(range(size) for size, _, _ in dims)):
        offset = sum(i * stride for i, (_, stride, _) in zip(index, dims, strict=True))
        first = sum(i * number for i, (_, _, number) in zip(index, dims, strict=True))
        yield Plane(offset, tensor.shape[dim], lanes, tensor.stride(dim), lane_stride, first, step)


def _joined(tensor: Tensor, dim: int) -> list[tuple[int, int, int]]:
    """(size, stride, distance in a neuron's numbering) of the other dimensions, neighbours made one where strides allow."""
    joined: list[tuple[int, int, int]] = []
    sizes = [size for d, size in enumerate(tensor.shape) if d != dim]
    strides = [stride for d, stride in enumerate(tensor.stride()) if d != dim]
    for place, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        number = math.prod(sizes[place + 1 :])
        if size == 1:
            continue
        if joined and joined[-1][1] == size * stride:
            joined[-1] = (joined[-1][0] * size, stride, number)
        else:
            joined.append((size, stride, number))
    return joined


def on_device(table: Sequence[Sequence[int]] | Sequence[int], device: torch.device) -> Tensor:
    """int64 tensor of these numbers, written without waiting for the device: by way of pinned memory."""
    host = torch.tensor(table, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
