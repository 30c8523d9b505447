"""The formulas of `reference` inside kernels, in float32, symbols as there. Tiles are [BLOCK]."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


class Average(NamedTuple):
    """A running average: x <- keep*x + take*new."""

    keep: float
    take: float  # 1 - keep with all its digits
    log: float  # of keep


class Rule(NamedTuple):
    """One step's options as kernel arguments. Only the constants and what is None change what is compiled."""

    base: Any  # tl.constexpr: "adamw", "momentum" or "gradient"
    plastic: Any  # tl.constexpr: whether alpha and h are needed
    exact: Any  # tl.constexpr: whether they come from this step's sums
    skips: Any  # tl.constexpr: whether tensors with non-finite gradients are skipped
    lr: float
    lr_tensor: Tensor | None  # float32, in place of lr
    sign: float  # of the gradient: -1 to ascend
    gradient_factor: Tensor | None  # float32, one element; so is found_inf
    found_inf: Tensor | None
    of_m: Average
    of_v: Average
    of_a: Average
    eps: float
    weights: tuple[float, ...]
    lower: float
    upper: float
    scale: float
    strength: float
    warmup: float | None
    coupled: float | None  # weight decay, one of the two or none
    decoupled: float | None
    max_update_norm: float | None
    homeostatic_rate: float | None
    target_rms: float


@triton.jit
def _clamp(x, lower, upper):
    return tl.clamp(x, lower, upper, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _lerp(x, y, take, keep):
    return tl.where(take < 0.5, x + take * (y - x), y - keep * (y - x))


@triton.jit
def gradient_gain(rule):
    """What a raw gradient is multiplied by."""
    gain = rule.sign
    if rule.gradient_factor is not None:
        gain *= tl.load(rule.gradient_factor)
    return gain


@triton.jit
def rates(rule):
    """The learning rate, and what decoupled decay leaves of a parameter."""
    lr, keep = rule.lr, 1.0
    if rule.lr_tensor is not None:
        lr = tl.load(rule.lr_tensor)
    if rule.decoupled is not None:
        keep = 1 - lr * rule.decoupled
    return lr, keep


@triton.jit
def _correction(average, step):
    """1 - keep^step. The series keeps the digits that 1 - exp(x) loses."""
    x = average.log * step
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.25, series, 1 - tl.exp(x))


@triton.jit
def corrections(step, rule):
    """What m, sqrt(v) and a are multiplied by to give m', sqrt(v') and a' of step 1, 2, ..."""
    if rule.base == "gradient":
        return 1.0, 1.0, 1.0
    else:
        of_root = 1 / tl.sqrt_rn(_correction(rule.of_v, step))
        return 1 / _correction(rule.of_m, step), of_root, 1 / _correction(rule.of_a, step)


@triton.jit
def average(x, new, weights):
    """A running average after the step. weights: an `Average`."""
    return _lerp(x, new, weights.take, weights.keep)


@triton.jit
def base_and_signals(g, m, v, a, correct, rule):
    """The base's own step; activity, |g| and |r|. m, v, a: after the step, a None without a trace; correct: `corrections`."""
    rms = tl.sqrt_rn(v) * correct[1]
    r = m / (rms + rule.eps) * correct[0]
    if rule.base == "adamw":
        base = r
    elif rule.base == "momentum":
        base = m / rule.of_m.take
    else:
        base = g
    activity = rms if a is None else a * correct[2]
    return base, (activity, tl.abs(g), tl.abs(r))


@triton.jit
def modulation(sums, numel, step, rule):
    """What `coefficient` takes of a tensor: 1 / mean of each signal, gate*scale, whether there is history.

    sums: pointer to float32 [SUMS]; likewise below.
    """
    activity, gradient, memory = tl.load(sums), tl.load(sums + 1), tl.load(sums + 2)
    floor = rule.eps if rule.base == "gradient" else TINY
    inverse = 1 / (activity / numel + floor), 1 / (gradient / numel + floor), 1 / (memory / numel + floor)
    blend = rule.scale
    if rule.warmup is not None:
        blend *= tl.minimum((step - 1) / rule.warmup, 1.0)
    finite = _is_finite(activity) & _is_finite(gradient) & _is_finite(memory)
    return inverse, blend, finite & (activity > 0) & (gradient > 0) & (memory > 0)


@triton.jit
def coefficient(signals, modulated, rule):
    """alpha. signals: activity, |g| and |r|; modulated: `modulation`."""
    inverse, blend, history = modulated
    full = rule.weights[0] * inverse[0] * signals[0] + rule.weights[1] * inverse[1] * signals[1]
    full = _clamp(full + rule.weights[2] * inverse[2] * signals[2], rule.lower, rule.upper)
    of_gradient = _clamp(inverse[1] * signals[1], rule.lower, rule.upper)
    alpha = 1 + rule.strength * (_lerp(of_gradient, full, blend, 1 - blend) - 1)
    return alpha if rule.base == "gradient" else tl.where(history, alpha, 1.0)


@triton.jit
def homeostasis(sums, numel, history, rule):
    """h; for the base "gradient" the cap and the gain on u."""
    base, update, factor = tl.load(sums + 3), tl.load(sums + 4), 1.0
    if rule.base != "gradient":
        ratio = tl.sqrt_rn(base / update)
        factor = tl.where(history & _is_finite(ratio) & (ratio > 0), ratio, 1.0)
    else:
        if rule.max_update_norm is not None:
            factor = tl.minimum(rule.max_update_norm / tl.sqrt_rn(update), 1.0, propagate_nan=tl.PropagateNan.ALL)
        if rule.homeostatic_rate is not None:
            rms = tl.sqrt_rn(factor * factor * update / numel + rule.eps)
            factor *= _clamp(1 + rule.homeostatic_rate * (rule.target_rms - rms), 0.5, 1.5)
        factor = tl.where(update == float("inf"), 0.0, factor)
    return factor
