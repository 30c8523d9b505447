"""Tensors of several dtypes in one kernel: a tensor is an address and a dtype code, both read from a table.

Values are float32 in registers. Rounding to bfloat16 is spelt out in integers, so that it is to nearest even everywhere:
Triton's interpreter truncates.
"""

import torch
import triton
import triton.language as tl

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_FLOAT32, _BFLOAT16 = tl.constexpr(DTYPE_CODES[torch.float32]), tl.constexpr(DTYPE_CODES[torch.bfloat16])


@triton.jit
def load_as_float(address, offset, mask, dtype):
    """float32 of `offset`'s shape, 0 where masked out. address: int64 scalar, dtype: a code, offset: int64 in elements."""
    if dtype == _FLOAT32:
        value = tl.load(address.to(tl.pointer_type(tl.float32)) + offset, mask=mask, other=0.0)
    elif dtype == _BFLOAT16:
        value = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        value = tl.load(address.to(tl.pointer_type(tl.float16)) + offset, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _bfloat16_bits(value):
    """int32 tile: the upper 16 bits of `value` (float32) rounded to nearest even; NaN stays NaN."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(value != value, 0x7FC0, rounded)


@triton.jit
def round_as(value, dtype):
    """`value` (float32) rounded to what the dtype can hold, still float32."""
    if dtype == _FLOAT32:
        rounded = value
    elif dtype == _BFLOAT16:
        rounded = (_bfloat16_bits(value) << 16).to(tl.float32, bitcast=True)
    else:
        rounded = value.to(tl.float16).to(tl.float32)
    return rounded


@triton.jit
def store_float(address, offset, value, mask, dtype):
    """Stores `value` (float32), rounded to the dtype; arguments as for `load_as_float`."""
    if dtype == _FLOAT32:
        tl.store(address.to(tl.pointer_type(tl.float32)) + offset, value, mask=mask)
    elif dtype == _BFLOAT16:
        tl.store(address.to(tl.pointer_type(tl.int16)) + offset, _bfloat16_bits(value).to(tl.int16), mask=mask)
    else:
        tl.store(address.to(tl.pointer_type(tl.float16)) + offset, value.to(tl.float16), mask=mask)
