"""The formulas of one NeuroPlastic step, in plain PyTorch.

Source: NeuroPlastic, arXiv 2604.26297. Per parameter tensor p with gradient g, decays rho, b1, b2, weights wa, wg, wm:

    a <- rho*a + (1-rho)*|g|          m <- b1*m + (1-b1)*g          v <- b2*v + (1-b2)*g^2
    r = |m| / (sqrt(v) + eps)         x^ = x / (mean(x) + eps)      gate = clip(steps before this one / warmup, 0, 1)
    alpha_full = clip(wa*a^ + wg*|g|^ + wm*r^, lo, hi)              alpha_grad = clip(|g|^, lo, hi)
    alpha = alpha_grad + gate*scale*(alpha_full - alpha_grad)       alpha = 1 + strength*(alpha - 1)
    u = alpha * base                  p <- p - lr * neuron factor * homeostasis(u)

Deviations: the paper's step is `base="gradient"`. The bases "adamw" and "momentum" modulate a known optimizer's step, and
their homeostasis conserves that step's norm. `strength=0` leaves the known optimizer. Neuron factors are ours.

Every function works on a piece of a tensor; only means and norms, which are of the whole tensor, join its pieces.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Hyperparameters(NamedTuple):
    """The keywords of `plasticity_step`, with symbols as in the formulas above.

    lr: step size, a float or a one-element tensor. base: "gradient", "adamw" or "momentum". betas: (b1, b2). trace_decay:
    rho. signal_weights: (wa, wg, wm). alpha_range: (lo, hi). warmup_steps: 0 for none. signals: "all" or "gradient" (alpha =
    alpha_grad). max_update_norm: None for no limit; it, target_rms and homeostatic_rate (0 for none) act on the base
    "gradient". decoupled_weight_decay: p shrinks by lr*weight_decay first; otherwise weight_decay*p joins u (base
    "gradient") or g. maximize: ascend.
    """

    lr: float | Tensor
    base: str
    betas: tuple[float, float]
    trace_decay: float = 0.95
    signal_weights: tuple[float, float, float] = (0.4, 0.4, 0.2)
    alpha_range: tuple[float, float] = (0.2, 2.0)
    plasticity_scale: float = 1.0
    strength: float = 1.0
    warmup_steps: float = 0
    signals: str = "all"
    max_update_norm: float | None = 1.0
    target_rms: float = 0.02
    homeostatic_rate: float = 0.01
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False


class NeuronFactor(NamedTuple):
    """What the update of each neuron's part of a parameter is multiplied by, after homeostasis.

    1 changes no bit, 0 leaves the part to decoupled decay alone. values: float32 [N], on the parameter's device; they may be
    changed in place between steps. dim: the dimension of the parameter that counts the neurons.
    """

    values: Tensor
    dim: int


class Moment(NamedTuple):
    """The numbers that change from step to step: floats, or float64 scalars on the device."""

    blend: float | Tensor  # gate * scale: how far alpha moves from alpha_grad to alpha_full
    correction: float | Tensor  # sqrt(1 - b2^step), Adam's second bias correction
    gain: float | Tensor  # what `base_direction` lacks: Adam's first bias correction; for momentum 1/(1-b1), for a sum


def moment(step: float | Tensor, hyper: Hyperparameters) -> Moment:
    """The numbers of step 1, 2, ...; the gate is 0 at the first, 1 after `warmup_steps`, and 1 without warm-up."""
    gate: float | Tensor = 1.0
    if hyper.warmup_steps:
        done = (step - 1) / hyper.warmup_steps
        gate = done.clamp(max=1.0) if isinstance(done, Tensor) else min(done, 1.0)
    beta1, beta2 = hyper.betas
    gain = {"gradient": 1.0, "momentum": 1 / (1 - beta1), "adamw": 1 / (1 - beta1**step)}[hyper.base]
    return Moment(gate * hyper.plasticity_scale if hyper.signals == "all" else 0.0, (1 - beta2**step) ** 0.5, gain)


class Piece(NamedTuple):
    """Matching parts of one tensor's streams and buffers, all of one shape.

    `magnitude` holds |g|, `memory` r and then the coefficient, `update` the base and then u.
    """

    param: Tensor
    grad: Tensor
    trace: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    magnitude: Tensor
    memory: Tensor
    update: Tensor


def effective_gradient(piece: Piece, hyper: Hyperparameters) -> Tensor:
    """The gradient in the state's dtype, signed for descent, with coupled decay where torch's Adam and SGD add it."""
    grad = piece.grad.to(piece.trace.dtype)
    if hyper.maximize:
        grad = -grad
    if hyper.weight_decay and not hyper.decoupled_weight_decay and hyper.base != "gradient":
        grad = grad.add(piece.param.to(grad.dtype), alpha=hyper.weight_decay)
    return grad


def advance_state(piece: Piece, hyper: Hyperparameters) -> None:
    """a, m and v, in place."""
    grad, (beta1, beta2) = effective_gradient(piece, hyper), hyper.betas
    piece.trace.lerp_(torch.abs(grad, out=piece.magnitude), 1 - hyper.trace_decay)
    piece.exp_avg.lerp_(grad, 1 - beta1)
    piece.exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)


def fill_buffers(piece: Piece, hyper: Hyperparameters, now: Moment) -> None:
    """|g| into `magnitude`, r into `memory` and, for the base "adamw", that base into `update`."""
    torch.abs(effective_gradient(piece, hyper), out=piece.magnitude)
    root = torch.sqrt(piece.exp_avg_sq, out=piece.update)
    torch.div(piece.exp_avg, torch.add(root, hyper.eps, out=piece.memory), out=piece.memory).abs_()
    if hyper.base == "adamw":
        root.div_(now.correction).add_(hyper.eps)
        torch.div(piece.exp_avg, root, out=piece.update)


def base_direction(piece: Piece, hyper: Hyperparameters) -> Tensor:
    """The unmodulated step after `fill_buffers`, short of the factor `Moment.gain`."""
    if hyper.base == "adamw":
        return piece.update
    return piece.exp_avg if hyper.base == "momentum" else effective_gradient(piece, hyper)


def signal_sums(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of a, |g| and r over a piece."""
    return piece.trace.sum(), piece.magnitude.sum(), piece.memory.sum()


def inverse_means(sums: Sequence[tuple[Tensor, ...]], numel: int, eps: float) -> list[Tensor]:
    """1 / (mean + eps) of each signal, from the sums of the pieces, added in their order."""
    return [1 / (torch.stack(column).sum() / numel + eps) for column in zip(*sums, strict=True)]


def coefficient(piece: Piece, inverse: Sequence[Tensor], hyper: Hyperparameters, now: Moment) -> Tensor:
    """The plasticity coefficient alpha of each element, into `memory`. It is not clipped again after blending."""
    bounds, of_gradient = hyper.alpha_range, piece.magnitude
    on_device = isinstance(now.blend, Tensor)  # then its value is not looked at
    if not on_device and not now.blend:
        alpha = torch.mul(of_gradient, inverse[1], out=piece.memory).clamp_(*bounds)
    else:
        trace_gain, gradient_gain, memory_gain = (w * x for w, x in zip(hyper.signal_weights, inverse, strict=True))
        alpha = piece.memory.mul_(memory_gain).addcmul_(piece.trace, trace_gain)
        alpha = alpha.addcmul_(of_gradient, gradient_gain).clamp_(*bounds)
        if on_device or now.blend != 1:
            alpha_grad = of_gradient.mul_(inverse[1]).clamp_(*bounds)
            blend = now.blend.to(alpha.dtype) if isinstance(now.blend, Tensor) else now.blend
            alpha = torch.lerp(alpha_grad, alpha, blend, out=piece.memory)
    return alpha if hyper.strength == 1 else alpha.mul_(hyper.strength).add_(1 - hyper.strength)


def modulate(piece: Piece, inverse: Sequence[Tensor], hyper: Hyperparameters, now: Moment) -> tuple[Tensor, Tensor]:
    """u, short of `Moment.gain`, into `update`; the piece's ||base|| and ||u||."""
    base = base_direction(piece, hyper)
    base_norm = torch.linalg.vector_norm(base)
    update = torch.mul(base, coefficient(piece, inverse, hyper, now), out=piece.update) if hyper.strength else base
    if hyper.base == "gradient" and hyper.weight_decay and not hyper.decoupled_weight_decay:
        update = torch.add(update, piece.param, alpha=hyper.weight_decay, out=piece.update)
    if update is not piece.update:
        piece.update.copy_(update)
    return base_norm, torch.linalg.vector_norm(update)


def homeostasis(norms: Sequence[tuple[Tensor, ...]], numel: int, hyper: Hyperparameters) -> Tensor | float:
    """The factor that keeps a tensor's update bounded, from the norms of its pieces.

    Base "gradient": cut ||u|| to `max_update_norm`, then a gain 1 + rate*(target_rms - rms) within [.5, 1.5]. Other bases:
    ||base|| / ||u||, so that plasticity redistributes the step within the tensor; 1 where u vanishes.
    """
    base_norm, norm = (torch.linalg.vector_norm(torch.stack(column)) for column in zip(*norms, strict=True))
    if hyper.base != "gradient":
        return torch.where(norm > 0, base_norm / norm, 1.0) if hyper.strength else 1.0
    factor: Tensor | float = 1.0
    if hyper.max_update_norm is not None:
        factor = (hyper.max_update_norm / norm).clamp_(max=1.0)
    if hyper.homeostatic_rate:
        rms = ((factor * norm).square() / numel + hyper.eps).sqrt()
        factor = factor * (1 + hyper.homeostatic_rate * (hyper.target_rms - rms)).clamp_(0.5, 1.5)
    return factor


def scale_neurons(update: Tensor, factor: NeuronFactor) -> None:
    """u of a whole tensor times its neurons' factors, in place. update: of the parameter's shape."""
    shape = [1] * update.ndim
    shape[factor.dim] = -1
    update.mul_(factor.values.view(shape))


def apply_update(piece: Piece, factor: Tensor | float, hyper: Hyperparameters, now: Moment) -> None:
    """p <- (1 - lr*wd)*p - lr*factor*gain*u in the state's dtype, rounded to the parameter's once."""
    param = piece.param.to(piece.update.dtype)  # the parameter itself, unless it is of half precision
    if hyper.weight_decay and hyper.decoupled_weight_decay:
        param.mul_(1 - hyper.lr * hyper.weight_decay)
    scale = -hyper.lr * now.gain * factor
    if isinstance(scale, Tensor):
        param.addcmul_(piece.update, scale)
    else:
        param.add_(piece.update, alpha=scale)
    if param is not piece.param:
        piece.param.copy_(param)
