"""Where many tensors lie, to see in one comparison whether anything has moved: an optimizer asks before every step.

Read in C++ where that can be built; one by one, that takes longer than all else that a fused step does on the host.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compiler import load

SOURCE = Path(__file__).with_suffix(".cpp")
MAJOR = 1  # version of DLPack's binary interface


def exchange_interface() -> int:
    """The address of torch's DLPack exchange interface. Raises RuntimeError where it has none, or one of another version."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        raise RuntimeError(f"torch {torch.__version__} has no DLPack exchange interface; version 2.10 has")
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    address = pointer(capsule, b"dlpack_exchange_api")
    major = ctypes.c_uint32.from_address(address).value
    if major != MAJOR:
        raise RuntimeError(f"torch {torch.__version__} has version {major} of DLPack's exchange interface, not {MAJOR}")
    return address


@cache
def compiled() -> Callable[[list[Tensor | None]], bytes] | None:
    """`tensor_places` in C++, which raises RuntimeError for tensors that DLPack does not know; None where it cannot be had."""
    try:
        interface, function = exchange_interface(), load(SOURCE, ctypes.PyDLL).tensor_places
    except RuntimeError as error:
        logging.getLogger(__name__).info("Places of tensors are read one by one: %s", error)
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p), ctypes.py_object
    none = id(None)
    return lambda tensors: function(interface, tensors, none)


def place(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def tensor_places(tensors: list[Tensor | None]) -> Any:
    """What compares equal while every tensor of a list keeps its address, dtype, device, sizes and strides.

    Tensors that only wrap others, such as sharded ones, have no address of their own: only their kind counts.
    """
    read = compiled()
    if read is not None:
        try:
            return read(tensors)
        except (
            RuntimeError
        ):  # DLPack knows neither sparse tensors, nor those on torch's meta device, nor what is no tensor
            pass
    return list(map(place, tensors))
