"""The formulas of `formulas` inside kernels, in float32, symbols as there. Tiles are [BLOCK]."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

CLIP_EPS = tl.constexpr(1e-6)  # as in torch.nn.utils.clip_grad_norm_


class Rule(NamedTuple):
    """One step's options as kernel arguments. Only the constants and what is None change what is compiled."""

    base: Any  # tl.constexpr: "gradient", "adamw" or "momentum"
    signals: Any  # tl.constexpr: "all", "gradient" or, with strength 0, "none"
    keep_trace: float
    take_trace: float  # 1 - keep_trace with all its digits; likewise below
    keep_avg: float
    take_avg: float
    keep_sq: float
    take_sq: float
    log_beta1: float
    log_beta2: float
    eps: float
    trace_weight: float
    gradient_weight: float
    memory_weight: float
    lower: float
    upper: float
    scale: float
    strength: float
    warmup: float | None
    sign: float  # of the gradient: -1 to ascend
    gradient_decay: float | None  # coupled decay that joins the gradient
    update_decay: float | None  # coupled decay that joins u
    parameter_decay: float | None  # decoupled
    max_update_norm: float | None
    homeostatic_rate: float | None
    target_rms: float
    max_grad_norm: float | None
    gradient_squares: Tensor | None
    lr: float
    lr_tensor: Tensor | None  # in place of lr
    grad_scale: Tensor | None
    found_inf: Tensor | None


@triton.jit
def _minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _clamp(x, lower, upper):
    return tl.clamp(x, lower, upper, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def unscaled(rule):
    """What takes the loss scale off a gradient."""
    if rule.grad_scale is not None:
        return 1 / tl.load(rule.grad_scale).to(tl.float32)
    else:
        return 1.0


@triton.jit
def gradient_gain(rule):
    """What a raw gradient is multiplied by: the sign, 1 / loss scale, the factor of torch.nn.utils.clip_grad_norm_."""
    scale = unscaled(rule)
    gain = rule.sign * scale
    if rule.max_grad_norm is not None:
        norm = tl.sqrt(tl.load(rule.gradient_squares).to(tl.float32)) * scale
        gain = gain * _minimum(rule.max_grad_norm / (norm + CLIP_EPS), 1.0)
    return gain


@triton.jit
def advance(g, a, m, v, rule):
    """a, m and v after a step."""
    a = rule.keep_trace * a + rule.take_trace * tl.abs(g)
    m = rule.keep_avg * m + rule.take_avg * g
    v = rule.keep_sq * v + rule.take_sq * g * g
    return a, m, v


@triton.jit
def memory(m, v, rule):
    """r."""
    return tl.abs(m) / (tl.sqrt(v) + rule.eps)


@triton.jit
def _decayed(log_decay, step):
    """1 - decay^step. The series keeps the digits that 1 - exp(x) loses."""
    x = log_decay * step
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.25, series, 1 - tl.exp(x))


@triton.jit
def moment(step, rule):
    """blend, correction and gain, as in `formulas.Moment`, of step 1, 2, ..."""
    blend = rule.scale
    if rule.warmup is not None:
        blend = blend * tl.minimum((step - 1) / rule.warmup, 1.0)
    gain = 1.0
    if rule.base == "adamw":
        gain = 1 / _decayed(rule.log_beta1, step)
    elif rule.base == "momentum":
        gain = 1 / rule.take_avg
    return blend, tl.sqrt(_decayed(rule.log_beta2, step)), gain


@triton.jit
def inverse_mean(total, numel, rule):
    """1 / (mean + eps) of a signal."""
    return 1 / (total / numel + rule.eps)


@triton.jit
def coefficient(g, a, r, inverse, blend, rule):
    """alpha. inverse: `inverse_mean` of a, |g| and r."""
    alpha = _clamp(tl.abs(g) * inverse[1], rule.lower, rule.upper)
    if rule.signals == "all":
        full = rule.trace_weight * inverse[0] * a + rule.gradient_weight * inverse[1] * tl.abs(g)
        full = _clamp(full + rule.memory_weight * inverse[2] * r, rule.lower, rule.upper)
        alpha = tl.where(blend == 0, alpha, alpha + blend * (full - alpha))
    return rule.strength * alpha + (1 - rule.strength)


@triton.jit
def proposal(g, a, m, v, inverse, now, rule):
    """The base's step and that modulated, both short of the gain and of `update_decay`. now: `moment`."""
    if rule.base == "adamw":
        base = m / (tl.sqrt(v) / now[1] + rule.eps)
    elif rule.base == "momentum":
        base = m
    else:
        base = g
    update = base
    if rule.signals != "none":
        update = base * coefficient(g, a, memory(m, v, rule), inverse, now[0], rule)
    return base, update


@triton.jit
def homeostasis(update_squares, base_squares, numel, rule):
    """The factor on u, from the sums of squares of u and of the base's step over the tensor."""
    factor = 1.0
    norm = tl.sqrt(update_squares)
    if rule.base != "gradient":
        if rule.signals != "none":
            factor = tl.where(norm > 0, tl.sqrt(base_squares) / norm, 1.0)
    else:
        if rule.max_update_norm is not None:
            factor = _minimum(rule.max_update_norm / norm, 1.0)
        if rule.homeostatic_rate is not None:
            scaled = factor * norm
            rms = tl.sqrt(scaled * scaled / numel + rule.eps)
            factor = factor * _clamp(1 + rule.homeostatic_rate * (rule.target_rms - rms), 0.5, 1.5)
    return factor


@triton.jit
def rounded_to_bfloat16(x, noise):
    """x without its lower 16 bits, up where these and `noise` (int32 in [0, 2^16)) carry; what is not finite stays."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + noise) & -65536
    return tl.where(tl.abs(x) < float("inf"), bits.to(tl.float32, bitcast=True), x)


@triton.jit
def nearest_even(x):
    """The noise with which `rounded_to_bfloat16` rounds to the nearest, ties to even."""
    return 0x7FFF + ((x.to(tl.int32, bitcast=True) >> 16) & 1)
