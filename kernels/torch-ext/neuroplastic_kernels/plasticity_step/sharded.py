"""A step of sharded tensors (DTensor) by any form: each process steps its shards, and sums are added up while training goes on.

With statistics "previous" a step needs the sums of the step before only. So the form runs on local shards, every shard leaves
its own five sums in a row of one tensor, one all-reduce for each mesh adds the rows up asynchronously, and the next step, or
whoever reads the state, waits for the result. A form divides sums by the number of elements that the form is given: rows are
handed over scaled by the shard's part of the whole.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import check_lists
from .reference import SUMS, NeuronFactor
from .storage import state_dtype

ROWS, LEFT, PENDING = "rows of sums", "rows to be added up", "reductions under way"  # in a workspace


class Left(NamedTuple):
    """Rows [tensors, 5] that a step left; key: what the rows are added up over; sums: of the states that the rows are for."""

    key: Any
    rows: Tensor
    sums: list[Tensor]


class Reduction(NamedTuple):
    """An all-reduce under way: its handle, the rows that it adds up, and the states' sums that the rows are for."""

    work: Any
    rows: Tensor
    sums: list[Tensor]


def is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh")


def reduce_sums(workspaces: Sequence[dict[Any, Any]]) -> None:
    """Starts to add up what the steps of these workspaces left: one all-reduce for each mesh. Call after all lists."""
    together: dict[Any, list[Left]] = {}
    for workspace in workspaces:
        for left in workspace.pop(LEFT, []):
            together.setdefault(left.key, []).append(left)
    for key, lefts in together.items():
        rows = lefts[0].rows if len(lefts) == 1 else torch.cat([left.rows for left in lefts])
        sums = [each for left in lefts for each in left.sums]
        workspaces[0].setdefault(PENDING, []).append(Reduction(_start(key, rows), rows, sums))


def settle(workspaces: Sequence[dict[Any, Any]]) -> None:
    """Waits for the sums of the last step, and puts them into the states. Call before the states are read."""
    reduce_sums(workspaces)
    for workspace in workspaces:
        for work, rows, sums in workspace.pop(PENDING, []):
            if work is not None:
                work.wait()
            torch._foreach_copy_(sums, list(rows.unbind()))


def plasticity_step(
    form: Callable[..., None],
    params: Sequence[Any],
    grads: Sequence[Any],
    states: Sequence[dict[str, Any]],
    *,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    workspace: dict[Any, Any] | None = None,
    **options: Any,
) -> None:
    """As `form`, to which tensors that cannot go by shards are left as they are.

    These are tensors of exact statistics, which a step needs before its end, with 8-bit state, with neuron factors, with
    `skip_nonfinite`, and those rounded at random.
    """
    check_lists(params, grads, states, neuron_factors)
    alone = workspace is None
    workspace = {} if workspace is None else workspace
    settle([workspace])
    local_params, local_grads, local_states = list(params), list(grads), list(states)
    groups: dict[Any, list[int]] = {}
    for number, (param, grad, state) in enumerate(zip(params, grads, states, strict=True)):
        factor = None if neuron_factors is None else neuron_factors[number]
        if grad is not None and factor is None and _goes_by_shards(param, grad, state, options):
            groups.setdefault(_reduced_over(param), []).append(number)
    left = []
    for key, numbers in groups.items():
        rows = _rows(workspace, key, [states[n]["sums"] for n in numbers], [_part(params[n]) for n in numbers])
        left.append(Left(key, rows, [states[n]["sums"] for n in numbers]))
        for row, n in zip(rows.unbind(), numbers, strict=True):
            local_params[n] = params[n]._local_tensor
            # an empty shard adds nothing, and forms need not know of empty shards
            local_grads[n] = _aligned(params[n], grads[n]) if local_params[n].numel() else None
            local_states[n] = {name: _local(value) for name, value in states[n].items()} | {"sums": row}
            if not local_params[n].numel():
                row.zero_()
                states[n]["step"] += 1
    form(
        local_params,
        local_grads,
        local_states,
        neuron_factors=neuron_factors,
        workspace=workspace,
        **options,
    )
    workspace[LEFT] = left
    if alone:
        settle([workspace])


def _goes_by_shards(param: Any, grad: Any, state: dict[str, Any], options: dict[str, Any]) -> bool:
    exact = options["base"] == "gradient" or options.get("statistics") == "exact"
    rounds = options.get("stochastic_rounding") and param.dtype == torch.bfloat16
    plain = not exact and not rounds and not options.get("skip_nonfinite") and "scales" not in state
    return plain and is_sharded(param) and is_sharded(grad) and hasattr(param, "_local_tensor")


def _reduced_over(param: Any) -> tuple[Any, ...]:
    """The mesh, the dimensions of the mesh over which a tensor is split, and the dtype of the sums."""
    dims = tuple(dim for dim, placement in enumerate(param.placements) if not placement.is_replicate())
    return param.device_mesh, dims, state_dtype(param), param.device


def _part(param: Any) -> float:
    return param._local_tensor.numel() / max(1, param.numel())


def _aligned(param: Any, grad: Any) -> Tensor:
    """The local gradient, split as the parameter is."""
    placed = grad if grad.placements == param.placements else grad.redistribute(placements=param.placements)
    return placed._local_tensor


def _local(value: Any) -> Any:
    return value._local_tensor if is_sharded(value) else value


def _rows(workspace: dict[Any, Any], key: Any, sums: list[Tensor], parts: list[float]) -> Tensor:
    """The states' sums [tensors, 5], scaled by `parts`, in memory that stays the same as long as the tensors do."""
    held = workspace.setdefault(ROWS, {})
    place = (key, *map(Tensor.data_ptr, sums))
    if place not in held:
        for other in [other for other in held if other[0] == key]:
            del held[other]
        held[place] = sums[0].new_empty(len(sums), SUMS), sums[0].new_tensor(parts).unsqueeze(1)
    rows, scale = held[place]
    torch.stack(sums, out=rows)
    return rows.mul_(scale)


def _start(key: Any, rows: Tensor) -> Any:
    """Adds rows up over the processes that hold the other shards; on a device the last reduction is not waited for.

    On the CPU it is: gloo aborts a process that ends while a reduction is under way.
    """
    mesh, dims, *_ = key
    groups = [mesh.get_group(dim) for dim in dims]
    for group in groups[:-1]:
        dist.all_reduce(rows, group=group)
    return dist.all_reduce(rows, group=groups[-1], async_op=rows.is_cuda) if groups else None
