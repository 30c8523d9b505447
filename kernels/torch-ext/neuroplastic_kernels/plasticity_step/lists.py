"""The lists of tensors of a step, and whether tables of their addresses that an earlier step made still serve."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import eight_bit, reference
from .checks import check_lists
from .passes import Shard
from .reference import NeuronFactor
from .storage import is_flat, state_dtype

VECTOR = 16  # bytes of the widest load
State = dict[str, Tensor]


class Lists(NamedTuple):
    """The caller's."""

    params: Sequence[Tensor]
    grads: Sequence[Any]
    states: Sequence[State]
    factors: Sequence[NeuronFactor | None] | None
    shards: Sequence[Shard | None] | None

    def factor(self, number: int) -> NeuronFactor | None:
        return None if self.factors is None else self.factors[number]

    def shard(self, number: int) -> Shard | None:
        return None if self.shards is None else self.shards[number]

    def origin(self, number: int) -> int | None:
        """The number of a tensor's first element within the whole, or None where the tensor is no run of the whole's."""
        shard = self.shard(number)
        return 0 if shard is None else shard.origin(self.params[number].shape)

    def whole(self, number: int) -> int:
        """The elements of the whole tensor."""
        shard = self.shard(number)
        return self.params[number].numel() if shard is None else math.prod(shard.shape)


class Prepared(NamedTuple):
    """What serves while `key` stays the same: tables, and the places in the lists of the tensors that are in none."""

    key: Any
    tables: Sequence[Any]
    others: frozenset[int]


class Step(NamedTuple):
    """One step's view of the lists. addresses: of the gradients, 0 for none; stepped: the parameters that have one."""

    prepared: Prepared
    addresses: list[int]
    stepped: Sequence[Tensor]


def is_sound(param: Tensor, grad: Tensor, state: State, skips: bool) -> bool:
    """Whether tensors are flat, on one device, and of the dtypes and sizes that tables say."""
    names, numel, wide = eight_bit.names(state), param.numel(), state_dtype(param)
    numels = dict.fromkeys(names, numel) | {"sums": reference.SUMS, "step": 1, "skipped": 1, "nonfinite": 1}
    numels["scales"] = math.prod(eight_bit.scales_shape(param.shape, len(names)))
    dtypes = {name: eight_bit.CODES[name].dtype for name in names if "scales" in state} | {"sums": wide}
    dtypes |= dict.fromkeys(("step", "skipped", "scales"), torch.float32)
    return (
        all(is_flat(tensor) and tensor.device == param.device for tensor in (param, grad, *state.values()))
        and all(t.numel() == numels.get(name) and t.dtype == dtypes.get(name, wide) for name, t in state.items())
        and (not skips or "skipped" in state)
    )


def neuron_layout(param: Tensor, neurons: NeuronFactor | None) -> tuple[int, int, int]:
    """Address of the factors, 0 for none; number of neurons; elements from one neuron to the next."""
    if neurons is None:
        return 0, 1, 1
    stride = math.prod(param.shape[neurons.dim % param.ndim + 1 :])
    return neurons.values.data_ptr(), max(1, neurons.values.numel()), max(1, stride)


def factor_place(factor: NeuronFactor | None) -> Any:
    if factor is None:
        return None
    values, dim = factor
    return (values.data_ptr(), values.dtype, values.shape, values.stride(), dim) if isinstance(values, Tensor) else dim


def key_of(lists: Lists, likes: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
    """What tables depend on, but for the addresses of gradients: compares equal while they serve.

    likes: the gradients, or where there is none the parameter; values: of all states. Bytes are counted, since memory that was
    given back may be taken again from the same address on.
    """
    params, grads, states, factors, shards = lists
    dtype, shape, flat = attrgetter("dtype"), attrgetter("shape"), Tensor.is_contiguous
    return (
        (len(states), [Tensor if grad is None else type(grad) for grad in grads]),
        [list(map(get, params)) for get in (Tensor.data_ptr, dtype, shape, flat)],
        [list(map(get, values)) for get in (Tensor.data_ptr, attrgetter("nbytes"))],
        [list(map(get, likes)) for get in (dtype, shape, flat, Tensor.is_neg, Tensor.get_device)],
        (list(map(len, states)), list(chain.from_iterable(states))),
        None if factors is None else list(map(factor_place, factors)),
        None if shards is None else list(shards),
    )


def begin(
    workspace: dict[Any, Any],
    lists: Lists,
    options: Any,
    prepare: Callable[[Lists], tuple[Sequence[Any], Sequence[int]]],
    keep: bool = True,
) -> Step:
    """The step of these lists, by tables that stand in `workspace`, or that `prepare` makes.

    options: the form, and what else its tables depend on. prepare: from lists that hold a gradient, or a tensor like it, for
    each parameter, to tables and the places of the tensors left out. keep: whether tables may serve later steps. Raises as
    `check_lists` does.
    """
    params, grads, states, factors, _ = lists
    likes = [param if grad is None else grad for param, grad in zip(params, grads, strict=False)]
    values = list(chain.from_iterable(map(dict.values, states)))
    try:
        places = list(map(Tensor.data_ptr, likes))
    except RuntimeError:  # a sparse gradient has none
        check_lists(params, grads, states, factors)
        raise
    key = options, [place % VECTOR if place else VECTOR for place in places], key_of(lists, likes, values)
    held: Prepared | None = workspace.get("prepared")
    if held is None or held.key != key:
        check_lists(params, grads, states, factors)
        tables, others = prepare(lists._replace(grads=likes))
        held = Prepared(key, tables, frozenset(others))
        if keep:
            workspace["prepared"] = held
    # An empty tensor has no address.
    addresses = [0 if grad is None else place or VECTOR for grad, place in zip(grads, places, strict=True)]
    stepped = params if all(addresses) else [p for p, address in zip(params, addresses, strict=True) if address]
    return Step(held, addresses, stepped)


def leave_others(step: Step, lists: Lists, **options: Any) -> Iterator[str]:
    """The reference's step of the tensors that are in no table."""
    theirs = [grad if number in step.prepared.others else None for number, grad in enumerate(lists.grads)]
    if any(grad is not None for grad in theirs):
        yield from reference.plasticity_passes(
            lists.params, theirs, lists.states, neuron_factors=lists.factors, shards=lists.shards, **options
        )
