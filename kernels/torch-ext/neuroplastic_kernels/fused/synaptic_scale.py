"""Homeostatic scaling of the incoming weights of all sites' neurons in one launch.

A table on the device lists the sites. A program owns whole rows, so it alone reads and writes their factors; rows whose
factor stays as it is are not touched.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .typed_memory import DTYPE_CODES, load_as_float, round_as, store_float

# Columns of the table.
ADDRESS, DTYPE, NEURONS, INPUTS, NEURON_STRIDE, INPUT_STRIDE, SCALE, SCALE_STRIDE, ERROR, ERROR_STRIDE = (
    tl.constexpr(position) for position in range(10)
)
FIELDS = tl.constexpr(10)
BLOCK_ROWS, BLOCK_INPUTS, NUM_WARPS = tl.constexpr(8), tl.constexpr(128), 4


@triton.jit
def _scale_kernel(
    table,  # [sites, FIELDS] int64
    rate,
    smallest,
    largest,
):
    site = table + tl.program_id(0) * FIELDS
    neurons, inputs, dtype = (
        tl.load(site + NEURONS).to(tl.int32),
        tl.load(site + INPUTS).to(tl.int32),
        tl.load(site + DTYPE),
    )
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = row < neurons
    scale_at = tl.load(site + SCALE).to(tl.pointer_type(tl.float32)) + row * tl.load(site + SCALE_STRIDE)
    error_at = tl.load(site + ERROR).to(tl.pointer_type(tl.float32)) + row * tl.load(site + ERROR_STRIDE)
    scale = tl.load(scale_at, mask=valid, other=1.0)
    error = tl.load(error_at, mask=valid, other=0.0)
    error = tl.where(tl.abs(error) < float("inf"), error, 0.0)  # false for NaN
    new = tl.minimum(tl.maximum(scale * (error * rate + 1.0), smallest), largest)
    factor = round_as(tl.where(valid, tl.div_rn(new, scale), 1.0), dtype)
    changed = valid & (factor != 1.0)
    if tl.max(changed.to(tl.int32), 0) > 0:
        address, stride = tl.load(site + ADDRESS), tl.load(site + INPUT_STRIDE)
        row_offset = (row * tl.load(site + NEURON_STRIDE))[:, None]
        for first in range(0, inputs, BLOCK_INPUTS):
            column = first + tl.arange(0, BLOCK_INPUTS)
            inside = changed[:, None] & (column < inputs)[None, :]
            offset = row_offset + (column * stride)[None, :]
            store_float(address, offset, load_as_float(address, offset, inside, dtype) * factor[:, None], inside, dtype)
        tl.store(scale_at, scale * factor, mask=changed)


def synaptic_scale(
    up_weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    errors: Sequence[Tensor],
    *,
    rate: float,
    scale_range: tuple[float, float],
) -> None:
    """One step of synaptic scaling for every site, in place; see `reference.synaptic_scale`.

    up_weights may be float32, bfloat16 or float16, with any strides; scales and errors are float32.
    """
    sites = [site for site in zip(up_weights, scales, errors, strict=True) if site[0].shape[0]]
    for device in dict.fromkeys(weight.device for weight, _, _ in sites):
        rows = [
            (
                weight.data_ptr(), DTYPE_CODES[weight.dtype], *weight.shape, *weight.stride(),
                scale.data_ptr(), scale.stride(0), error.data_ptr(), error.stride(0),
            )
            for weight, scale, error in sites if weight.device == device
        ]  # fmt: skip
        table = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
        blocks = max(triton.cdiv(weight.shape[0], BLOCK_ROWS.value) for weight, _, _ in sites)
        with torch.cuda.device_of(table):
            _scale_kernel[(len(rows), blocks)](table, rate, *scale_range, num_warps=NUM_WARPS, enable_fp_fusion=False)
