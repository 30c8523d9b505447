"""Optimizer state of reborn neurons: brought back to its initial value, for any optimizer that keeps it in plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuroplastic_kernels import Fill, StateSlice, is_sharded, part_of

from ..sites import NeuronSlice, Site
from .optimizers import Optimizers

# Running means of squares and magnitudes, and step sizes. Their bias correction is spent by the time a neuron is reborn, so
# zero would not be "initial" but "infinitely quiet": the first steps would be several times the learning rate. The mean of
# the surviving neurons is what a new one may expect.
MAGNITUDES = frozenset({
    "exp_avg_sq", "max_exp_avg_sq", "trace", "square_avg", "acc_delta", "exp_inf", "sum", "variance", "row_var", "col_var",
    "exp_avg_sq_row", "exp_avg_sq_col", "step_size", "state2",
})  # fmt: skip
# Copies or averages of the weights: ASGD, Lookahead, SAM. They follow the weights.
COPIES = frozenset({"ax", "slow_buffer", "slow_param", "slow_params", "cached_params", "old_p"})
# Neither, whatever the values look like: running means of gradients and steps.
MOMENTA = frozenset({"exp_avg", "momentum_buffer", "grad_avg", "prev", "state1", "s"})
NEAR = 0.5  # of the weights' norm: state of another name that lies nearer to the weights is a copy of them
# Of a whole tensor, whatever their shape: NeuroPlastic's sums over all elements.
WHOLE = frozenset({"sums"})
# transformers' Adafactor factors over the last two dimensions: which of them each factor lacks.
DROPPED = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}


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


def resize_state(optimizers: Optimizers, parameter: Tensor, cuts: Sequence[Cut]) -> list[tuple[dict[str, Any], Any]]:
    """The states of `parameter`, and their tensors by name after `cuts` (at most one along each dimension).

    New entries are initial: the mean over the kept ones for running magnitudes, else 0. Sums over the whole tensor, which are
    those of another number of elements, begin anew at 0. Nothing is changed here; call this while `parameter` still has its
    old shape.

    Raises:
        TypeError: as `state_slices`.
    """
    found = []
    for optimizer, state in optimizers.states(parameter):
        resized = {name: torch.zeros_like(state[name]) for name in WHOLE & state.keys()}
        for dim, kept, added in cuts:
            for name, value, along in _owned(type(optimizer).__name__, state, parameter, dim):
                resized[name] = resize(resized.get(name, value), Cut(along, kept, added), _fill(name, value))
        found.append((state, resized))
    return found


class Follower(NamedTuple):
    """State that holds a copy of weights: the neurons' block of both, with the neurons along `dim`."""

    state: Tensor
    weight: Tensor
    dim: int

    def follow(self, mask: Tensor) -> None:
        """Copies the masked neurons' weights into the state. mask: [N] bool."""
        state, weight = part_of(self.state), part_of(self.weight).tensor
        chosen = mask[state.span(self.dim)].view([-1 if d == self.dim else 1 for d in range(weight.ndim)])
        state.tensor.copy_(torch.where(chosen, weight.to(state.tensor.dtype), state.tensor))


def state_slices(optimizers: Optimizers, neurons: NeuronSlice | None) -> tuple[StateSlice, ...]:
    """The parts of the optimizers' state of a site's slice of a parameter that belong to single neurons and return to an
    initial value.

    Includes state of the parameter's shape and the factored second moments of Adafactor (torch's and transformers'). Running
    magnitudes restart at the survivors' mean, everything else at 0. State shared by all neurons (step counters, the factor
    of the other dimension) is left out: it stays as it is. Copies of weights are `followers`.

    Raises:
        TypeError: state that cannot be reset neuron by neuron, such as quantised tensors. Nothing has been changed then.
    """
    return tuple(
        StateSlice(block, along, _fill(name, block))
        for name, block, along, copies in _blocks(optimizers, neurons)
        if not copies
    )


def followers(optimizers: Optimizers, neurons: NeuronSlice | None) -> tuple[Follower, ...]:
    """The parts of the optimizers' state that hold copies of a site's slice of a parameter; raises as `state_slices`."""
    if neurons is None:
        return ()
    return tuple(
        Follower(block, neurons.view, along)
        for _, block, along, copies in _blocks(optimizers, neurons)
        if copies and block.shape == neurons.view.shape
    )


def copies_of(optimizers: Optimizers, parameter: Tensor) -> list[Tensor]:
    """The optimizers' copies of a whole parameter."""
    states = (state for _, state in optimizers.states(parameter))
    return [value for state in states for name, value in state.items() if _is_copy(name, value, parameter)]


def require_resettable(optimizers: Optimizers, sites: Iterable[Site]) -> None:
    """Raises TypeError, as `state_slices`, if the state of a neuron of `sites` could not be reset.

    Also for optimizers that keep tensors of a weight's shape in a list of their own, where no one can tell whose they are.
    """
    tensors = [neurons.tensor for site in sites for neurons in site.slices]
    shapes, known = {tensor.shape for tensor in tensors if tensor.ndim > 1}, {id(tensor) for tensor in tensors}
    for site in sites:
        for neurons in site.slices:
            state_slices(optimizers, neurons)
    for optimizer in optimizers.found:
        held = known | {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        for name, value in vars(optimizer).items():
            if any(part.shape in shapes and id(part) not in held for part in _listed(value)):
                raise _refused(type(optimizer).__name__, name, "is kept beside its state")


def _blocks(optimizers: Optimizers, neurons: NeuronSlice | None) -> Iterator[tuple[str, Tensor, int, bool]]:
    """Name, the neurons' block, the block's dimension of the neurons, and whether the state holds a copy of the weights."""
    if neurons is None:
        return
    for optimizer, state in optimizers.states(neurons.tensor):
        for name, value, along in _owned(type(optimizer).__name__, state, neurons.tensor, neurons.dim):
            yield name, neurons.block_of(value, along), along, _is_copy(name, value, neurons.tensor)


def _fill(name: str, value: Tensor) -> Fill:
    """What a new neuron's state becomes. State of an unknown name without negative values is taken for a magnitude."""
    if name in MAGNITUDES:
        return "mean"
    known = name in MOMENTA | COPIES
    return "mean" if not known and bool((value >= 0).all()) and bool(value.any()) else "zero"


def _is_copy(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether state equals or averages the weights; told by the name, and for names unknown here by the values."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or name in MAGNITUDES | MOMENTA | WHOLE:
        return False
    if name in COPIES:
        return True
    weights = parameter.detach().to(value.dtype)
    return bool((value - weights).norm() < NEAR * weights.norm())


def _owned(optimizer: str, state: dict[str, Any], parameter: Tensor, dim: int) -> Iterator[tuple[str, Tensor, int]]:
    """Name, tensor, and dimension of the neurons of the state that has entries per neuron. optimizer: the name of its class."""
    for name, value in state.items():
        if isinstance(value, (list, tuple, dict)) and _holds_tensors(value):
            raise _refused(optimizer, name, f"is a {type(value).__name__} of tensors that mix all neurons")
        if name in WHOLE or not isinstance(value, Tensor) or (value.numel() <= 1 and value.shape != parameter.shape):
            continue
        if is_sharded(value):
            if not _shards_alike(value, parameter):
                raise _refused(optimizer, name, "is sharded otherwise than its parameter")
            if name not in MAGNITUDES | MOMENTA | COPIES:
                raise _refused(
                    optimizer, name, "is sharded and of an unknown name, so that no shard tells what it means"
                )
        elif type(value) not in (Tensor, nn.Parameter):
            raise _refused(optimizer, name, f"is a {type(value).__name__}, quantised")
        along = _neuron_dim(optimizer, name, value, parameter, dim)
        if along is None:
            continue
        if not value.is_floating_point():
            raise _refused(optimizer, name, f"is {value.dtype}, quantised")
        yield name, value, along


def _shards_alike(value: Any, parameter: Any) -> bool:
    return is_sharded(parameter) and value.shape == parameter.shape and value.placements == parameter.placements


def _listed(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in lists, and lists of lists."""
    if isinstance(value, Tensor) and depth:
        yield value
    elif isinstance(value, (list, tuple)) and depth < 3:
        for part in value:
            yield from _listed(part, depth + 1)


def _holds_tensors(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return any(isinstance(part, Tensor) and part.numel() > 1 for part in parts)


def _refused(optimizer: str, name: str, what: str) -> TypeError:
    return TypeError(
        f"optimizer state {name!r} of {optimizer} {what}: it cannot be reset neuron by neuron; use an optimizer with plain "
        f"floating-point state of the parameter's shape, such as NeuroPlastic or AdamW, or exclude these layers"
    )


def _neuron_dim(optimizer: str, name: str, value: Tensor, parameter: Tensor, dim: int) -> int | None:
    """The dimension of `value` that counts the neurons, or None if its entries are shared between neurons."""
    if value.shape == parameter.shape:
        return dim
    if name in DROPPED and value.ndim == parameter.ndim - 1:
        dropped = parameter.ndim + DROPPED[name]
        return None if dim == dropped else dim - (dim > dropped)
    if value.ndim == parameter.ndim and all(s in (1, p) for s, p in zip(value.shape, parameter.shape, strict=True)):
        return dim if value.shape[dim] == parameter.shape[dim] else None
    raise _refused(optimizer, name, f"has shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}")
