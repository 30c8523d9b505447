"""Optimizer state of reborn neurons: brought back to its initial value, for any optimizer that keeps it in plain tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuroplastic_kernels import Fill, StateSlice

from ..sites import NeuronSlice

# Running means of squares and magnitudes, and step sizes. Their bias correction is spent by the time a neuron is reborn, so
# zero would not be "initial" but "infinitely quiet": the first steps would be several times the learning rate. The mean of
# the surviving neurons is what a new one may expect.
MAGNITUDES = frozenset({
    "exp_avg_sq", "max_exp_avg_sq", "trace", "square_avg", "acc_delta", "exp_inf", "sum", "variance", "row_var", "col_var",
    "exp_avg_sq_row", "exp_avg_sq_col", "step_size",
})  # fmt: skip
# Of a whole tensor, whatever their shape: NeuroPlastic's sums over all elements.
WHOLE = frozenset({"sums"})
# transformers' Adafactor factors over the last two dimensions: which of them each factor lacks.
DROPPED = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's or DeepSpeed's wrappers.

    Raises:
        TypeError: there is none.
    """
    inner, seen = optimizer, 0
    while not isinstance(inner, torch.optim.Optimizer) or type(inner).__name__ == "AcceleratedOptimizer":
        inner, seen = getattr(inner, "optimizer", None), seen + 1
        if inner is None or seen > 4:
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or wrap one, got {type(optimizer).__name__}")
    return inner


class Cut(NamedTuple):
    """What becomes of the neurons along dimension `dim` of a tensor: the entries `kept` stay, `added` new ones follow."""

    dim: int
    kept: Tensor  # [K] int64
    added: int


def resize(tensor: Tensor, cut: Cut, fill: Fill = "zero") -> Tensor:
    """A copy of `tensor` after `cut`; new entries are 0, or the mean over the kept ones."""
    held = tensor.index_select(cut.dim, cut.kept.to(tensor.device))
    shape = [cut.added if d == cut.dim else size for d, size in enumerate(tensor.shape)]
    mean = held.mean(cut.dim, keepdim=True) if fill == "mean" and len(cut.kept) else 0.0
    return torch.cat([held, held.new_zeros(shape) + mean], cut.dim)


def resize_state(optimizer: torch.optim.Optimizer | None, parameter: Tensor, cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """The state of `parameter` after `cuts` (at most one along each dimension), by name.

    New entries are initial: the mean over the kept ones for running magnitudes, else 0. Sums over the whole tensor, which are
    those of another number of elements, begin anew at 0. Nothing is changed here; call this while `parameter` still has its
    old shape.

    Raises:
        TypeError: as `state_slices`.
    """
    held = {} if optimizer is None else optimizer.state.get(parameter, {})
    resized = {name: torch.zeros_like(held[name]) for name in WHOLE & held.keys()}
    for dim, kept, added in cuts:
        for name, value, along, fill in _owned_state(optimizer, parameter, dim):
            resized[name] = resize(resized.get(name, value), Cut(along, kept, added), fill)
    return resized


def state_slices(optimizer: torch.optim.Optimizer | None, neurons: NeuronSlice | None) -> tuple[StateSlice, ...]:
    """The parts of the optimizer state of a site's slice of a parameter that belong to single neurons.

    Includes state of the parameter's shape and the factored second moments of Adafactor (torch's and transformers'). Running
    magnitudes restart at the survivors' mean, everything else at 0. State shared by all neurons (step counters, the factor
    of the other dimension) is left out: it stays as it is.

    Raises:
        TypeError: state that cannot be reset neuron by neuron, such as quantised tensors. Nothing has been changed then.
    """
    if neurons is None:
        return ()
    return tuple(
        StateSlice(neurons.block_of(value, along), along, fill)
        for _, value, along, fill in _owned_state(optimizer, neurons.tensor, neurons.dim)
    )


def _owned_state(
    optimizer: torch.optim.Optimizer | None, parameter: Tensor, dim: int
) -> Iterator[tuple[str, Tensor, int, Fill]]:
    """Name, tensor, dimension of the neurons, and fill of the state that has entries per neuron."""
    if optimizer is None:
        return
    for name, value in optimizer.state.get(parameter, {}).items():
        if name in WHOLE or not isinstance(value, Tensor) or (value.numel() <= 1 and value.shape != parameter.shape):
            continue
        along = _neuron_dim(name, value, parameter, dim)
        if along is None:
            continue
        if not value.is_floating_point():
            raise TypeError(
                f"optimizer state {name!r} of {type(optimizer).__name__} is {value.dtype}: quantised state cannot be reset "
                f"neuron by neuron; use an optimizer with floating-point state, or exclude these layers"
            )
        yield name, value, along, "mean" if name in MAGNITUDES else "zero"


def _neuron_dim(name: str, value: Tensor, parameter: Tensor, dim: int) -> int | None:
    """The dimension of `value` that counts the neurons, or None if its entries are shared between neurons."""
    if value.shape == parameter.shape:
        return dim
    if name in DROPPED and value.ndim == parameter.ndim - 1:
        dropped = parameter.ndim + DROPPED[name]
        return None if dim == dropped else dim - (dim > dropped)
    if value.ndim == parameter.ndim and all(s in (1, p) for s, p in zip(value.shape, parameter.shape, strict=True)):
        return dim if value.shape[dim] == parameter.shape[dim] else None
    raise TypeError(
        f"optimizer state {name!r} has shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}: it is not "
        f"known which of it belongs to a single neuron; use an optimizer whose state has the parameter's shape"
    )
