"""The kernels of the fused `ffn_activation`: a forward pass, a backward pass with partial sums, and the sum of those.

Everything is computed in float32, right after loading. Tiles are tokens x neurons.
"""

import math

import triton
import triton.language as tl

from ..common.fused_philox import uniform_rows
from .neuron_sums import ABS_OUTPUT, ABS_OUTPUT_GRADIENT, OUTPUT, ROWS, TOKENS

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
NORMAL_PEAK = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))
TANH_SCALE = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi))
TANH_CUBIC = tl.constexpr(0.044715)
QUICK_SCALE = tl.constexpr(1.702)
LENGTHS = ("tokens", "tiles", "splits")  # differ from batch to batch, which is no reason to compile anew
# Rows of neuron sums, as kernels must have them.
_ABS_OUTPUT, _ABS_OUTPUT_GRADIENT = tl.constexpr(ABS_OUTPUT), tl.constexpr(ABS_OUTPUT_GRADIENT)
_OUTPUT, _TOKENS, _ROWS = tl.constexpr(OUTPUT), tl.constexpr(TOKENS), tl.constexpr(ROWS)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _activation(x, NAME: tl.constexpr):
    """act(x) and act'(x) in float32; what is not used is not computed."""
    if NAME == "gelu":
        gate = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
        slope = gate + x * NORMAL_PEAK * tl.exp(-0.5 * x * x)
        z = x * gate
    elif NAME == "gelu_tanh":  # (1 + tanh(y)) / 2 is sigmoid(2 y)
        cubic = x * x * TANH_CUBIC
        gate = _sigmoid((x + x * cubic) * TANH_SCALE)
        slope = gate + x * gate * (1.0 - gate) * (1.0 + 3.0 * cubic) * TANH_SCALE
        z = x * gate
    elif NAME == "relu":  # written so that NaN stays NaN
        slope = tl.where(x <= 0.0, 0.0, 1.0)
        z = tl.where(x <= 0.0, 0.0, x)
    elif NAME == "silu":
        gate = _sigmoid(x)
        slope = gate * (1.0 + x * (1.0 - gate))
        z = x * gate
    else:
        tl.static_assert(NAME == "quick_gelu")
        gate = _sigmoid(x * QUICK_SCALE)
        slope = gate * (1.0 + x * (1.0 - gate) * QUICK_SCALE)
        z = x * gate
    return z, slope


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    h,  # [tokens, width]
    bias,  # [width] or None
    seed,  # [1] int64 or None: no dropout
    z,  # [tokens, width]
    tokens,
    width,
    rate,
    scale,
    ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(1) * BLOCK_N
    column = first + tl.arange(0, BLOCK_N)
    place = token[:, None] * width + column[None, :]
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    x = tl.load(h + place, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    y, _ = _activation(x, ACTIVATION)
    if seed is not None:
        y = tl.where(uniform_rows(tl.load(seed), token, first, BLOCK_N) < rate, 0.0, y * scale)
    tl.store(z + place, y.to(z.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    dy,  # [tokens, width] gradient of the output
    h,  # [tokens, width]
    bias,  # [width] or None
    seed,  # [1] int64 or None
    token_mask,  # [tokens] uint8 or None
    dh,  # [tokens, width]
    partials,  # [splits, rows, width] float32
    tokens,
    width,
    rows,  # sums per split: those of neuron_sums, if wanted, then that of the bias
    rate,
    scale,
    tiles,  # of BLOCK_T tokens in a split
    ACTIVATION: tl.constexpr,
    OBSERVE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    split = tl.program_id(0)
    first = tl.program_id(1) * BLOCK_N
    column = first + tl.arange(0, BLOCK_N)
    if bias is not None:
        b = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        sum_dh = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    if OBSERVE:
        count = tl.zeros([BLOCK_T], tl.float32)
        sum_z = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        sum_abs_z = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        sum_abs_dz = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for tile in range(tiles):
        token = (split * tiles + tile).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        place = token[:, None] * width + column[None, :]
        inside = (token < tokens)[:, None] & (column < width)[None, :]
        x = tl.load(h + place, mask=inside, other=0.0).to(tl.float32)
        dz = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            x += b
        if seed is not None:
            dz = tl.where(uniform_rows(tl.load(seed), token, first, BLOCK_N) < rate, 0.0, dz * scale)
        z, slope = _activation(x, ACTIVATION)
        dx = dz * slope
        tl.store(dh + place, dx.to(dh.dtype.element_ty), mask=inside)
        if bias is not None:
            sum_dh += dx
        if OBSERVE:
            counted = token < tokens
            if token_mask is not None:
                counted = counted & (tl.load(token_mask + token, mask=counted, other=0) != 0)
            count += counted.to(tl.float32)
            z = tl.where(counted[:, None], z, 0.0)
            dz = tl.where(counted[:, None], dz, 0.0)
            sum_z += z
            sum_abs_z += tl.abs(z)
            sum_abs_dz += tl.abs(dz)
    valid = column < width
    out = partials + split.to(tl.int64) * rows * width + column
    if OBSERVE:
        tl.store(out + _ABS_OUTPUT * width, tl.sum(sum_abs_z, 0), mask=valid)
        tl.store(out + _ABS_OUTPUT_GRADIENT * width, tl.sum(sum_abs_dz, 0), mask=valid)
        tl.store(out + _OUTPUT * width, tl.sum(sum_z, 0), mask=valid)
        tl.store(out + _TOKENS * width, tl.zeros([BLOCK_N], tl.float32) + tl.sum(count, 0), mask=valid)
        if bias is not None:
            tl.store(out + _ROWS * width, tl.sum(sum_dh, 0), mask=valid)
    elif bias is not None:
        tl.store(out, tl.sum(sum_dh, 0), mask=valid)


@triton.jit(do_not_specialize=LENGTHS)
def sum_kernel(
    partials,  # [splits, rows, width] float32
    sums,  # [rows, width] float32
    splits,
    rows,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1)
    valid = column < width
    total = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        place = (split.to(tl.int64) * rows + row)[:, None] * width + column[None, :]
        total += tl.load(partials + place, mask=(split < splits)[:, None] & valid[None, :], other=0.0)
    tl.store(sums + row * width + column, tl.sum(total, 0), mask=valid)
