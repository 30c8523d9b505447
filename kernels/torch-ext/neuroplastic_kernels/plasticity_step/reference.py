"""One NeuroPlastic step in plain PyTorch: the specification that every other form is held to.

Source: NeuroPlastic, arXiv 2604.26297. Per parameter tensor p of n elements with gradient g and step number t = 1, 2, ...:

    m <- b1*m + (1-b1)*g        v <- b2*v + (1-b2)*g^2        a <- rho*a + (1-rho)*|g|   (activity "trace" only)
    m' = m/(1-b1^t)             v' = v/(1-b2^t)               a' = a/(1-rho^t)
    r = m'/(sqrt(v') + eps)     activity = a' where the state holds a trace, else sqrt(v')
    base = r ("adamw") or m/(1-b1), torch's momentum buffer ("momentum")
    alpha_full = clip(wa*activity/A + wg*|g|/G + wm*|r|/R, lo, hi)             alpha_grad = clip(|g|/G, lo, hi)
    alpha = alpha_grad + gate*scale*(alpha_full - alpha_grad)                  gate = clip((t-1)/warmup, 0, 1)
    alpha <- 1 + strength*(alpha - 1)
    p <- (1 - lr*decay)*p - lr * h * alpha*base                                times a factor per neuron, if given

A, G and R are the means of activity, |g| and |r|, and h = ||base||/||alpha*base|| is homeostasis: the step keeps the norm of
the base's own step, plasticity only redistributes the norm among the elements. With statistics "previous" all four are
those of this tensor's step before, which the step left in `sums`; with "exact" they are this step's own. Without a step
before, or after one whose sums are 0 or not finite, alpha = h = 1: the base's own step. So alpha stays within [lo, hi] and h
within [1/hi, 1/lo] whatever the gradients do (scale and strength at most 1).

The base "gradient" is the paper's own step, always exact, without bias correction, activity a (m' = m, v' = v, a' = a):

    x^ = x/(mean(x) + eps) in place of x/A, x/G, x/R            u = alpha*g (+ decay*p, unless decoupled)
    ||u|| is cut to max_update_norm, to 0 where the norm overflows; rms = sqrt(mean(u^2) + eps)
    u *= clip(1 + rate*(target_rms - rms), .5, 1.5)             p <- p - lr*u

Deviations from the paper: warm-up counts steps rather than epochs; the bases "adamw" and "momentum", means of the step
before, activity "rms", conserving homeostasis, strength, decoupled decay and factors per neuron are ours. strength 0 is
torch's AdamW bit for bit, SGD with momentum, or SGD.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_lists
from .passes import Shard, is_plastic, measures, passes
from .storage import narrow, widened

# `sums` of a tensor's state: what its last step adds up over its elements.
ACTIVITY, GRADIENT, MEMORY, BASE_SQUARED, UPDATE_SQUARED = range(5)
SUMS = 5


class Hyperparameters(NamedTuple):
    """The options of a step; symbols as in the formulas above.

    lr: a float or a one-element tensor. base: "adamw", "momentum" or "gradient". betas: (b1, b2). statistics: "previous"
    or "exact". trace_decay: rho. signal_weights: (wa, wg, wm). alpha_range: (lo, hi). warmup_steps: 0
    for none. max_update_norm (None for no limit), target_rms and homeostatic_rate (0 for none) act on the base "gradient".
    decoupled_weight_decay: p shrinks by lr*weight_decay first; otherwise weight_decay*p joins u (base "gradient") or g.
    maximize: ascend. skip_nonfinite: a tensor whose gradient holds inf or NaN stays as it is, with its state, and `skipped`
    grows by one; otherwise such elements, and their moments, become non-finite for good, as AdamW's do, while the others step
    on as the base does (of the base "gradient" the whole tensor becomes NaN, by the norm). stochastic_rounding: round bfloat16
    parameters up or down such that the expected value is exact. seed: of the random numbers that this and 8-bit state use; a
    tensor's number is its place in the list.
    """

    lr: float | Tensor
    base: str
    betas: tuple[float, float]
    statistics: str = "previous"
    trace_decay: float = 0.95
    signal_weights: tuple[float, float, float] = (0.4, 0.4, 0.2)
    alpha_range: tuple[float, float] = (0.2, 2.0)
    plasticity_scale: float = 1.0
    strength: float = 1.0
    warmup_steps: float = 0
    max_update_norm: float | None = 1.0
    target_rms: float = 0.02
    homeostatic_rate: float = 0.01
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False
    skip_nonfinite: bool = False
    stochastic_rounding: bool = False
    seed: int = 0


class NeuronFactor(NamedTuple):
    """What the step of each neuron's part of a parameter is multiplied by, after homeostasis.

    1 changes no bit, 0 leaves the part to decoupled decay alone. values: float32 [N], on the parameter's device; they may be
    changed in place between steps. dim: the dimension of the parameter that counts the neurons.
    """

    values: Tensor
    dim: int

    def over(self, param: Tensor) -> Tensor:
        """The factors in a shape that broadcasts over the parameter."""
        return self.values.view([-1 if d == self.dim % param.ndim else 1 for d in range(param.ndim)])


def blend(step: float, hyper: Hyperparameters) -> float:
    """gate*scale of step 1, 2, ...: how far alpha goes from alpha_grad to alpha_full."""
    gate = min((step - 1) / hyper.warmup_steps, 1.0) if hyper.warmup_steps else 1.0
    return gate * hyper.plasticity_scale


def coefficient(signals: Sequence[Tensor], sums: Tensor, numel: int, step: float, hyper: Hyperparameters) -> Tensor:
    """alpha of each element, from its signals (activity, |g|, |r|) and their sums; 1 without history."""
    floor = hyper.eps if hyper.base == "gradient" else torch.finfo(sums.dtype).tiny
    inverse = 1 / (sums[:BASE_SQUARED] / numel + floor)
    activity, gradient, memory = (weight * inverse[k] * signals[k] for k, weight in enumerate(hyper.signal_weights))
    full = (activity + gradient + memory).clamp(*hyper.alpha_range)
    of_gradient = (inverse[GRADIENT] * signals[GRADIENT]).clamp(*hyper.alpha_range)
    alpha = torch.lerp(of_gradient, full, blend(step, hyper))
    alpha = 1 + hyper.strength * (alpha - 1)
    return alpha if hyper.base == "gradient" else torch.where(has_history(sums), alpha, 1.0)


def has_history(sums: Tensor) -> Tensor:
    """Whether the sums of the signals can be divided by: finite, and none 0, as after a step without a gradient."""
    means = sums[:BASE_SQUARED]
    return (means.isfinite() & (means > 0)).all()


def homeostasis(sums: Tensor, numel: int, hyper: Hyperparameters) -> Tensor:
    """h, from the sums of base^2 and (alpha*base)^2; for the base "gradient" the cap and the gain on u."""
    base, update = sums[BASE_SQUARED], sums[UPDATE_SQUARED]
    if hyper.base != "gradient":
        ratio = (base / update).sqrt()
        return torch.where(has_history(sums) & ratio.isfinite() & (ratio > 0), ratio, 1.0)
    factor = torch.ones_like(update)
    if hyper.max_update_norm is not None:
        factor = (hyper.max_update_norm / update.sqrt()).clamp(max=1.0)
    if hyper.homeostatic_rate:
        rms = (factor.square() * update / numel + hyper.eps).sqrt()
        factor = factor * (1 + hyper.homeostatic_rate * (hyper.target_rms - rms)).clamp(0.5, 1.5)
    return torch.where(update.isinf(), 0.0, factor)


def step_tensor(
    p: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    hyper: Hyperparameters,
    numel: int,
    neurons: NeuronFactor | None = None,
) -> Iterator[None]:
    """Steps p in place. p, g and the state: of one dtype, float32 or float64. numel: of the whole tensor, where p is a shard.

    Yields where `sums` holds what this step has added up so far, of which it needs the sums over all shards next.
    """
    (b1, b2), paper, step, lr = hyper.betas, hyper.base == "gradient", state["step"].item(), float(hyper.lr)
    coupled = 0.0 if hyper.decoupled_weight_decay else hyper.weight_decay
    g = -g if hyper.maximize else g
    if coupled and not paper:
        g = g.add(p, alpha=coupled)
    m, v = state["exp_avg"].lerp_(g, 1 - b1), state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
    correction_m, correction_v, correction_a = (1.0 if paper else 1 - rho**step for rho in (b1, b2, hyper.trace_decay))

    rms = v.sqrt() / correction_v**0.5
    denominator, magnitude = rms + hyper.eps, g.abs()
    memory = (m / denominator).abs() / correction_m
    activity = state["trace"].lerp_(magnitude, 1 - hyper.trace_decay) / correction_a if "trace" in state else rms
    # base = numerator / denominator / divisor, as torch's own optimizers write it: the bits are theirs.
    numerator, divisor = {"adamw": (m, correction_m), "momentum": (m, 1 - b1), "gradient": (g, 1.0)}[hyper.base]
    denominator = denominator if hyper.base == "adamw" else torch.ones_like(p)

    if is_plastic(hyper):
        base, signals, known, exact = (
            numerator / denominator / divisor,
            (activity, magnitude, memory),
            state["sums"],
            measures(hyper),
        )
        sums = torch.stack([*(each.sum() for each in (*signals, base.square())), base.new_zeros(())])
        if exact:
            known[:BASE_SQUARED] = sums[:BASE_SQUARED]
            yield
        alpha = coefficient(signals, known, numel, step, hyper)
        update = alpha * base + coupled * p if paper and coupled else alpha * base
        sums[UPDATE_SQUARED] = update.square().sum()
        if exact:
            known[BASE_SQUARED:] = sums[BASE_SQUARED:]
            yield
        h = homeostasis(known, numel, hyper)
        if not exact:
            known.copy_(sums)
        numerator = update * h if paper else numerator * (alpha * h)
    else:
        state["sums"].zero_()
    if neurons is not None:
        numerator = numerator * neurons.over(p)
    if hyper.weight_decay and hyper.decoupled_weight_decay:
        p.mul_(1 - lr * hyper.weight_decay)
    p.addcdiv_(numerator, denominator, value=-lr / divisor)


def step_entry(
    number: int,
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    rule: Hyperparameters,
    gradient_factor: Tensor | None,
    neurons: NeuronFactor | None,
    shard: Shard | None,
) -> Iterator[None]:
    """One tensor's step, number `number` of a list, in the tensor's own precision; yields between the passes of `passes`."""
    p, g, values = widened(param, grad, state, gradient_factor)
    if rule.skip_nonfinite:
        bad = state.get("nonfinite", g.new_zeros(()))
        bad.copy_((~g.isfinite()).sum())
        yield
        if bad:
            state["skipped"] += 1
            return
    state["step"] += 1
    numel = param.numel() if shard is None else math.prod(shard.shape)
    if numel:
        yield from step_tensor(p, g, values, rule, numel, neurons)
        narrow(param, state, p, values, number, rule, shard)


@torch.no_grad()
def plasticity_passes(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[dict[str, Tensor]],
    *,
    gradient_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    shards: Sequence[Shard | None] | None = None,
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> Iterator[str]:
    """Steps every tensor that has a gradient once, in place: a generator, see `passes`, to be run to its end.

    Args:
        params: n tensors of any shape and layout; float16, bfloat16, float32 or float64.
        grads: their gradients, of the same shapes, read only; None leaves a tensor and its state alone.
        states: per tensor what it keeps. `step`: float32 scalar, the steps done so far. `exp_avg`, `exp_avg_sq` and, for an
            activity that is a trace, as the paper's, `trace`: m, v and a, of the tensor's shape; float32 for half precision,
            else the tensor's dtype, in which all arithmetic is done; or 8-bit codes, and then `scales` (see `eight_bit`).
            `sums`: [5] of that dtype, see above. `skipped`: float32 scalar, with skip_nonfinite only. May be empty where
            there is no gradient.
        gradient_factor: one element, what every gradient is multiplied by first: clipping, and the loss scale taken off.
        found_inf: one element; unless it is 0, nothing changes.
        neuron_factors: per tensor the factors of its neurons, or None.
        shards: per tensor where it lies in the whole that it is a shard of, or None, with skip_nonfinite beside a scalar
            `nonfinite` of the dtype of `sums` in the state. Its tensors go through the passes together, for which all that a
            step computes is held at once.
        workspace: a dict of the caller's, empty at first, in which other forms keep tables from call to call.
        **hyper: the fields of `Hyperparameters`; `lr`, `base` and `betas` have no default.

    Raises:
        RuntimeError: a sparse gradient, or a tensor of another shape than its gradient or state.
        ValueError: lists of unequal length, or factors that do not fit. TypeError: an unknown keyword.
    """
    rule = Hyperparameters(**hyper)
    check_lists(params, grads, states, neuron_factors)
    idle = found_inf is not None and bool(found_inf.item())
    factors, boxes = neuron_factors or [None] * len(params), shards or [None] * len(params)
    steps = [
        step_entry(number, param, grad, state, rule, gradient_factor, factors[number], boxes[number])
        for number, (param, grad, state) in enumerate(zip(params, grads, states, strict=True))
        if grad is not None and not idle
    ]
    while shards is None and steps:  # one after the other: what a step computes is held for one tensor only
        for _ in steps.pop(0):
            pass
    for name in passes(rule):
        for step in steps:
            next(step, None)
        yield name
