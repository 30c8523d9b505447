"""Under what circumstances the optimizer's kernels run: how they cut a tensor, which tensors they can read, CUDA graphs."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import is_flat

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Geometry(NamedTuple):
    """block: elements at a time, a power of 2 >= 256; chunk: elements of one program, a multiple of block."""

    block: int
    chunk: int
    warps: int


DEVICE = Geometry(
    block=512, chunk=16384, warps=4
)  # 1024 would take 127 registers and more, and leave room for few warps
INTERPRETER = Geometry(block=16384, chunk=16384, warps=4)  # its time goes by operations, not by elements


def geometry() -> Geometry:
    return INTERPRETER if triton.knobs.runtime.interpret else DEVICE


def is_readable(tensor: Tensor) -> bool:
    """Whether kernels can take a tensor of parameters or gradients: its dtype, its layout, its device."""
    return tensor.dtype in DTYPES and is_flat(tensor) and (tensor.is_cuda or triton.knobs.runtime.interpret)


def is_captured(tensor: Tensor) -> bool:
    """Whether what is done to a tensor now becomes part of a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
