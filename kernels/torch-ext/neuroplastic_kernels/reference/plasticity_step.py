"""One step of the NeuroPlastic optimizer over lists of tensors: the specification every faster form is held to.

A tensor is walked three times, in pieces that fit the cache: state, then update, then parameter. Each pass needs a sum over
the whole tensor from the pass before it. Besides the state it takes two buffers of the largest tensor's size.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .plasticity_formulas import (
    Hyperparameters,
    Moment,
    Piece,
    advance_state,
    apply_update,
    fill_buffers,
    homeostasis,
    inverse_means,
    modulate,
    moment,
    signal_sums,
)

CHUNK = 1 << 18  # elements of a piece: long enough to hide the cost of a call, short enough for the shared cache


def advance(piece: Piece, hyper: Hyperparameters, now: Moment) -> None:
    """State, then buffers."""
    advance_state(piece, hyper)
    fill_buffers(piece, hyper, now)


class Passes(NamedTuple):
    """The work on one piece, as functions that can be compiled one by one.

    The sums stand apart from `advance` because a compiler that fuses a sum with what it sums computes that twice.
    """

    advance: Callable[..., None]
    signal_sums: Callable[..., tuple[Tensor, Tensor, Tensor]]
    modulate: Callable[..., tuple[Tensor, Tensor]]
    apply_update: Callable[..., None]


EAGER = Passes(advance, signal_sums, modulate, apply_update)


@cache
def compiled_passes() -> Passes:
    """The passes through torch.compile, for tensors of any length."""
    compiled = partial(torch.compile, dynamic=True)
    return Passes(compiled(advance), compiled(signal_sums), compiled(modulate), compiled(apply_update))


def step_tensor(pieces: Sequence[Piece], hyper: Hyperparameters, now: Moment, passes: Passes) -> None:
    """One step of one tensor, given as its pieces."""
    numel = sum(piece.param.numel() for piece in pieces)
    sums = []
    for piece in pieces:
        passes.advance(piece, hyper, now)
        sums.append(passes.signal_sums(piece, hyper))
    inverse = inverse_means(sums, numel, hyper.eps)
    norms = [passes.modulate(piece, inverse, hyper, now) for piece in pieces]
    factor = homeostasis(norms, numel, hyper)
    for piece in pieces:
        passes.apply_update(piece, factor, hyper, now)


def is_flat(stream: Tensor) -> bool:
    """Whether a tensor is one run of memory of this process: contiguous, and no subclass such as a sharded DTensor."""
    return stream.is_contiguous() and type(stream) in (Tensor, torch.nn.Parameter)


class Buffers:
    """Room for the pieces of one tensor after the other, of one dtype and device, up to `numel` elements each."""

    def __init__(self, like: Tensor, numel: int) -> None:
        self.memory, self.update = like.new_empty(numel), like.new_empty(numel)
        self.magnitude = like.new_empty(min(numel, CHUNK))

    def whole(self, streams: Sequence[Tensor]) -> list[Piece]:
        """Flat streams as one piece."""
        flat = [stream.view(-1) for stream in streams]
        numel = flat[0].numel()
        return [Piece._make([*flat, self.memory[:numel], self.update[:numel], None, None])]

    def cut(self, streams: Sequence[Tensor]) -> list[Piece]:
        """Flat streams as pieces of at most CHUNK elements, which take turns with the buffer of |g|."""
        numel = streams[0].numel()
        flat = [*(stream.view(-1) for stream in streams), self.memory[:numel], self.update[:numel]]
        parts = zip(*(stream.split(CHUNK) for stream in flat), strict=True)
        return [Piece._make([*views, self.magnitude[: views[0].numel()], views[5]]) for views in parts]


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
    memory, update = torch.empty_like(trace), torch.empty_like(trace)
    return Piece(
        param, grad, trace, exp_avg, exp_avg_sq, memory, update, magnitude=torch.empty_like(trace), alpha=memory
    )


@torch.no_grad()
def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    traces: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    compile: bool = False,
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> None:
    """Step every parameter tensor once, in place; `plasticity_formulas` holds the formulas.

    Args:
        params: n tensors of any shape, layout and real floating dtype.
        grads: their gradients, of the same shapes; read only.
        traces, exp_avgs, exp_avg_sqs: a, m and v, of the parameters' shapes; float32 for half-precision parameters, else
            the parameter's dtype. All arithmetic is in this dtype.
        steps: n scalars on the CPU, the steps done so far; each grows by one.
        compile: run the passes over large flat tensors through `torch.compile` (on the CPU it needs a C++ compiler).
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
    for param, grad, trace, exp_avg, exp_avg_sq, step in zip(
        params, grads, traces, exp_avgs, exp_avg_sqs, steps, strict=True
    ):
        step += 1
        if param.numel() == 0:
            continue
        now, streams = moment(step.item(), rule), (param, grad, trace, exp_avg, exp_avg_sq)
        if not all(map(is_flat, streams)):
            step_tensor([one_piece(*streams)], rule, now, EAGER)
            continue
        buffers = workspace[trace.dtype, trace.device]
        if compile and param.numel() > CHUNK:
            step_tensor(buffers.whole(streams), rule, now, compiled_passes())
        else:
            step_tensor(buffers.cut(streams), rule, now, EAGER)
