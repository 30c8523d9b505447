"""Optimizer state of reborn neurons: brought back to its initial value, for any optimizer that keeps it in plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuroplastic_kernels.neurons import Fill, StateSlice

# Running means of squares and magnitudes, and step sizes. Their bias correction is spent by the time a neuron is reborn, so
# zero would not be "initial" but "infinitely quiet": the first steps would be several times the learning rate. The mean of
# the surviving neurons is what a new one may expect.
MAGNITUDES = frozenset({
    "exp_avg_sq", "max_exp_avg_sq", "trace", "square_avg", "acc_delta", "exp_inf", "sum", "variance", "row_var", "col_var",
    "exp_avg_sq_row", "exp_avg_sq_col", "step_size",
})  # fmt: skip
FACTORED_ROWS, FACTORED_COLUMNS = (
    "exp_avg_sq_row",
    "exp_avg_sq_col",
)  # transformers' Adafactor drops the other dimension


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


def resize_state(
    optimizer: torch.optim.Optimizer | None, parameter: Tensor, dim: int, kept: Tensor, added: int
) -> dict[str, Tensor]:
    """The state of `parameter` after its dimension `dim` keeps the entries `kept` and gains `added` new ones, by name.

    New entries are initial: the mean over the kept ones for running magnitudes, else 0. Nothing is changed here.

    Args:
        kept: [K] int64. Call this while `parameter` still has its old shape.

    Raises:
        TypeError: as `state_slices`.
    """
    if optimizer is None:
        return {}
    slices = {id(state.tensor): state for state in state_slices(optimizer, parameter, dim)}
    resized = {}
    for name, value in optimizer.state.get(parameter, {}).items():
        if id(value) in slices:
            _, along, fill = slices[id(value)]
            held = value.index_select(along, kept.to(value.device))
            mean = held.mean(along, keepdim=True) if fill == "mean" and len(kept) else 0.0
            shape = [added if d == along else size for d, size in enumerate(value.shape)]
            resized[name] = torch.cat([held, torch.zeros(shape).to(value) + mean], along)
    return resized


def state_slices(optimizer: torch.optim.Optimizer | None, parameter: Tensor | None, dim: int) -> tuple[StateSlice, ...]:
    """The parts of `parameter`'s optimizer state that belong to single neurons along dimension `dim`.

    Includes state of the parameter's shape and the factored second moments of Adafactor (torch's and transformers'). Running
    magnitudes restart at the survivors' mean, everything else at 0. State shared by all neurons (step counters, the factor
    of the other dimension) is left out: it stays as it is.

    Raises:
        TypeError: state that cannot be reset neuron by neuron, such as quantised tensors. Nothing has been changed then.
    """
    if optimizer is None or parameter is None:
        return ()
    slices = []
    for name, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, Tensor) or (value.numel() <= 1 and value.shape != parameter.shape):
            continue
        along = _neuron_dim(name, value, parameter, dim)
        if along is None:
            continue
        if not value.is_floating_point():
            raise TypeError(
                f"optimizer state {name!r} of {type(optimizer).__name__} is {value.dtype}: quantised state cannot be reset "
                f"neuron by neuron; use an optimizer with floating-point state, or exclude these layers"
            )
        fill: Fill = "mean" if name in MAGNITUDES else "zero"
        slices.append(StateSlice(value, along, fill))
    return tuple(slices)


def _neuron_dim(name: str, value: Tensor, parameter: Tensor, dim: int) -> int | None:
    """The dimension of `value` that counts the neurons, or None if its entries are shared between neurons."""
    if value.shape == parameter.shape:
        return dim
    if parameter.ndim == 2 and name in (FACTORED_ROWS, FACTORED_COLUMNS):
        return 0 if (name == FACTORED_ROWS) == (dim == 0) else None
    kept = [d for d in range(value.ndim) if value.shape[d] != 1]
    factored = value.ndim == parameter.ndim and len(kept) == 1 and value.shape[kept[0]] == parameter.shape[kept[0]]
    if factored:
        return dim if kept[0] == dim else None
    raise TypeError(
        f"optimizer state {name!r} has shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}: it is not "
        f"known which of it belongs to a single neuron; use an optimizer whose state has the parameter's shape"
    )
