"""What a step of mixed precision adds around the formulas: loss scaling, clipping, stochastic rounding, 8-bit state.

Each is a conversion before or after `reference`, which stays as it is:

    g <- g / grad_scale, then g * min(1, max_grad_norm / (norm of all g + 1e-6))      before
    a, m, v out of 8 bits before, back into 8 bits after; p in float32 before, rounded stochastically to bfloat16 after
    if some gradient overflowed (found_inf), everything is as it was

Random numbers are Philox words with the counter (element, step, 0, tensor): the first rounds p, the others a, m and v.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.philox import philox
from .eight_bit import BLOCK, dequantise, quantise
from .formulas import NeuronFactor
from .lists import check_dense
from .reference import plasticity_step as plain_step

PIECE = 1 << 18  # elements rounded at a time; a multiple of the blocks of 8-bit state


class Options(NamedTuple):
    """The keywords this module adds, as `plasticity_step` describes them."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    max_grad_norm: float | None = None
    stochastic_rounding: bool = False
    seed: int = 0
    gradient_squares: Tensor | None = None


def as_local(value: Tensor) -> Tensor:
    """A scalar that a sharded tensor's norm left spread over processes, whole on each."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def gradient_squares(grads: Sequence[Tensor], *, workspace: dict[Any, Any] | None = None) -> Tensor:
    """The sum of the squares of all elements of `grads`, a scalar on the first one's device.

    For gradients in several lists that `plasticity_step` is to clip by the norm they have together. float32, or float64 if
    some gradient is. Nothing is read back from the device. `workspace` is for other forms. Raises RuntimeError for a gradient
    that is not dense.
    """
    check_dense(grads)
    if not grads:
        return torch.zeros(())
    device = grads[0].device
    wide = (grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads)
    norms = [as_local(torch.linalg.vector_norm(grad)).to(device) for grad in wide]
    return torch.stack(norms).square().sum()


def gradient_factor(grads: Sequence[Tensor], options: Options) -> Tensor | None:
    """What every gradient is multiplied by; None for nothing. grads: those to clip, unless `options` knows their squares."""
    factor = None if options.grad_scale is None else 1 / options.grad_scale
    if options.max_grad_norm is not None and grads:
        known = options.gradient_squares
        norm = (gradient_squares(grads) if known is None else known).sqrt()
        norm = norm if factor is None else norm * factor.to(norm.device)
        clipping = (options.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        factor = clipping if factor is None else factor.to(norm.device) * clipping
    return factor


def rounded_to_bfloat16(values: Tensor, word: Tensor) -> Tensor:
    """float32 values without their lower 16 bits, rounded up with the probability these stand for. word: random bits."""
    bits = values.view(torch.int32) + (word & 0xFFFF).to(torch.int32)
    return torch.where(values.isfinite(), (bits & -65536).view(torch.float32), values)


def round_off(
    wide: Tensor | None, values: Sequence[Tensor], codes: Sequence[Tensor], scales: Tensor | None, *counter: Any
) -> None:
    """Round one tensor's new parameter `wide` in place, and its new moments into `codes` and `scales`, where there are any.

    counter: the seed, the step counter and the tensor's number.
    """
    seed, step, tensor = counter
    numel, device = values[0].numel(), values[0].device
    for start in range(0, numel, PIECE):
        index = torch.arange(start, min(start + PIECE, numel), device=device)
        piece = slice(start, start + index.numel())
        word, *others = philox(seed, index, step.to(torch.int64), 0, tensor)
        if wide is not None:
            part = wide.view(-1)[piece]
            part.copy_(rounded_to_bfloat16(part, word))
        if scales is not None:
            draws = [(other >> 8).to(torch.float32) * 2.0**-24 for other in others]
            coded, largest = quantise([value.view(-1)[piece] for value in values], draws)
            for stored, new in zip(codes, coded, strict=True):
                stored.view(-1)[piece] = new
            scales[:, start // BLOCK : start // BLOCK + largest.shape[1]] = largest


def careful_step(
    streams: Sequence[Tensor],
    scales: Tensor | None,
    number: int,
    factor: Tensor | None,
    options: Options,
    neurons: NeuronFactor | None = None,
    **plain: Any,
) -> None:
    """One tensor's step with all that `options` ask for. streams: p, g, a, m, v and the step counter."""
    param, grad, *moments, step = streams
    kept = [param, *moments, step, *([] if scales is None else [scales])]
    before = [] if options.found_inf is None else [tensor.clone() for tensor in kept]
    wide = None
    if options.stochastic_rounding and param.dtype == torch.bfloat16:
        wide = param.to(torch.float32, memory_format=torch.contiguous_format)
    values = moments if scales is None else dequantise(moments, scales)
    if factor is not None:
        grad = grad.to(values[0].dtype) * factor.to(grad.device)
    a, m, v = values
    plain_step([param if wide is None else wide], [grad], [a], [m], [v], [step], neuron_factors=[neurons], **plain)
    if wide is not None or scales is not None:
        round_off(wide, values, moments, scales, options.seed, step, number)
    if wide is not None:
        param.copy_(wide)
    if options.found_inf is not None:
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(torch.where(options.found_inf.to(tensor.device) != 0, old, tensor))


@torch.no_grad()
def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    traces: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    scales: Sequence[Tensor | None] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    max_grad_norm: float | None = None,
    stochastic_rounding: bool = False,
    seed: int = 0,
    gradient_squares: Tensor | None = None,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    **plain: Any,
) -> None:
    """`reference` with the options of mixed precision.

    Args:
        grads: as there; a tensor whose gradient is None is left alone.
        traces, exp_avgs, exp_avg_sqs: as there, or 8-bit codes of contiguous tensors, with their scales.
        scales: per tensor float32 [3, blocks of 256] for 8-bit state and None for float state; None for no 8-bit state.
        grad_scale: one element; gradients are taken divided by it and stay as they are.
        found_inf: one element; unless it is 0, nothing changes. On the CPU its value is read, on a device it is not.
        max_grad_norm: the norm to which the gradients of all tensors together are scaled down, None for no limit.
        gradient_squares: one element, the sum of squares of all gradients that are scaled down together, as the operation
            of this name gives it; None where this list holds them all.
        stochastic_rounding: round bfloat16 parameters up or down such that the expected value is exact.
        seed: of the random numbers that this and 8-bit state use; a tensor's number is its place in the list.
        neuron_factors: per tensor the factors of its neurons, or None; None for no factors at all.
        **plain: `workspace` and the fields of `Hyperparameters`.
    """
    options = Options(grad_scale, found_inf, max_grad_norm, stochastic_rounding, seed, gradient_squares)
    if found_inf is not None and found_inf.is_cpu:
        if found_inf.item():
            return
        options = options._replace(found_inf=None)
    rows = list(enumerate(zip(params, grads, traces, exp_avgs, exp_avg_sqs, steps, strict=True)))
    present = [(number, streams) for number, streams in rows if streams[1] is not None]
    factor = gradient_factor([streams[1] for _, streams in present], options)
    factors = [None] * len(rows) if neuron_factors is None else neuron_factors
    simple: list[tuple[Any, ...]] = []
    for number, streams in present:
        scale = None if scales is None else scales[number]
        rounds = stochastic_rounding and streams[0].dtype == torch.bfloat16
        if scale is None and factor is None and options.found_inf is None and not rounds:
            simple.append((*streams, factors[number]))
        else:
            careful_step(streams, scale, number, factor, options, factors[number], **plain)
    params, present_grads, *state, neurons = ([each[k] for each in simple] for k in range(7))
    plain_step(params, present_grads, state[0], state[1], state[2], state[3], neuron_factors=neurons, **plain)
