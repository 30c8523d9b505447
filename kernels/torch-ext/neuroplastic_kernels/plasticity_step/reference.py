"""One step of the NeuroPlastic optimizer over lists of tensors: the specification every faster form is held to.

A tensor is walked three times, in pieces that fit the cache: state, then update, then parameter. Each pass needs a sum over
the whole tensor from the pass before it. Besides the state it takes three buffers of the largest tensor's size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .formulas import (
    Hyperparameters,
    Moment,
    NeuronFactor,
    Piece,
    advance_state,
    apply_update,
    fill_buffers,
    homeostasis,
    inverse_means,
    modulate,
    moment,
    scale_neurons,
    signal_sums,
)

CHUNK = 1 << 19  # elements of a piece: long enough to hide the cost of a call, short enough for the shared cache


def propose(pieces: Sequence[Piece], hyper: Hyperparameters, now: Moment) -> Tensor | float:
    """The state's step and u of one tensor, given as its pieces; the factor that homeostasis puts on u."""
    numel = sum(piece.param.numel() for piece in pieces)
    sums = []
    for piece in pieces:
        advance_state(piece, hyper)
        fill_buffers(piece, hyper, now)
        sums.append(signal_sums(piece))
    inverse = inverse_means(sums, numel, hyper.eps)
    norms = [modulate(piece, inverse, hyper, now) for piece in pieces]
    return homeostasis(norms, numel, hyper)


def is_flat(stream: Tensor) -> bool:
    """Whether a tensor is one run of memory of this process: contiguous, no subclass such as a sharded DTensor, and its numbers
    as they lie there."""
    return stream.is_contiguous() and type(stream) in (Tensor, torch.nn.Parameter) and not stream.is_neg()


class Buffers:
    """Room for the pieces of one tensor after the other, of one dtype and device, up to `numel` elements each."""

    def __init__(self, like: Tensor, numel: int) -> None:
        self.magnitude, self.memory, self.update = (like.new_empty(numel) for _ in range(3))

    def cut(self, streams: Sequence[Tensor]) -> list[Piece]:
        """Flat streams as pieces of at most CHUNK elements."""
        numel = streams[0].numel()
        flat = [stream.view(-1) for stream in streams]
        flat += [buffer[:numel] for buffer in (self.magnitude, self.memory, self.update)]
        return [Piece._make(parts) for parts in zip(*(stream.split(CHUNK) for stream in flat), strict=True)]


def make_room(workspace: dict[Any, Buffers], traces: Sequence[Tensor]) -> None:
    """Let `workspace` hold buffers for every flat trace, by dtype and device."""
    largest: dict[Any, Tensor] = {}
    for trace in filter(is_flat, traces):
        kind = (trace.dtype, trace.device)
        if kind not in largest or trace.numel() > largest[kind].numel():
            largest[kind] = trace
    for kind, trace in largest.items():
        if kind not in workspace or workspace[kind].memory.numel() < trace.numel():
            workspace[kind] = Buffers(trace, trace.numel())


def one_piece(param: Tensor, grad: Tensor, trace: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Piece:
    """A tensor of any layout as one piece with buffers of its own."""
    return Piece(param, grad, trace, exp_avg, exp_avg_sq, *(torch.empty_like(trace) for _ in range(3)))


@torch.no_grad()
def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    traces: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> None:
    """Step every parameter tensor once, in place; `plasticity_formulas` holds the formulas.

    Args:
        params: n tensors of any shape, layout and real floating dtype.
        grads: their gradients, of the same shapes; read only.
        traces, exp_avgs, exp_avg_sqs: a, m and v, of the parameters' shapes; float32 for half-precision parameters, else
            the parameter's dtype. All arithmetic is in this dtype.
        steps: n float32 scalars, the steps done so far; each grows by one. On the device, nothing is read from them.
        neuron_factors: per tensor the factors of its neurons, or None; None for no factors at all.
        workspace: a dict of the caller's, empty at first, in which buffers are kept from call to call.
        **hyper: the fields of `Hyperparameters`; `lr`, `base` and `betas` have no default.

    Non-finite gradients are not special: through the means they reach their whole tensor. Nothing is read back from the
    device. Raises TypeError for an unknown keyword, ValueError for lists of unequal length.
    """
    rule = Hyperparameters(**hyper)
    if isinstance(rule.lr, Tensor) and rule.lr.device.type == "cpu":
        rule = rule._replace(lr=rule.lr.item())
    workspace = {} if workspace is None else workspace
    make_room(workspace, traces)
    factors = [None] * len(params) if neuron_factors is None else neuron_factors
    for param, grad, trace, exp_avg, exp_avg_sq, step, neurons in zip(
        params, grads, traces, exp_avgs, exp_avg_sqs, steps, factors, strict=True
    ):
        step += 1
        if param.numel() == 0:
            continue
        now = moment(step.item() if step.is_cpu else step.double(), rule)
        streams = (param, grad, trace, exp_avg, exp_avg_sq)
        if all(map(is_flat, streams)):
            room = workspace[trace.dtype, trace.device]
            pieces, update = room.cut(streams), room.update[: param.numel()].view(param.shape)
        else:
            pieces = [one_piece(*streams)]
            update = pieces[0].update
        factor = propose(pieces, rule, now)
        if neurons is not None:
            scale_neurons(update, neurons)
        for piece in pieces:
            apply_update(piece, factor, rule, now)
