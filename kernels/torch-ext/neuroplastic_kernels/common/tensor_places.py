"""Where tensors lie, to see in one comparison whether anything has moved since a table of addresses was written."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_places(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Equal while every tensor keeps its address, dtype, device, sizes and strides.

    Tensors that only wrap others, such as sharded and sparse ones, have no address of their own: there the object counts.
    """
    return [
        (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type != "meta"
        else id(tensor)
        for tensor in tensors
    ]
