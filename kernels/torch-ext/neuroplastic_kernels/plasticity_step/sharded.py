"""A step of lists of tensors, sharded ones (DTensor) among them, by any form: each process steps its shards.

A form is handed local tensors, and where they lie in the whole. Every pass leaves a row for each sharded tensor, and the rows
of all lists are added up over the processes together: one all-reduce per pass, mesh (each dimension that splits) and dtype.
With statistics "previous" the sums are needed in the next step only: on a device that all-reduce goes on while training does,
and the next step, or whoever reads the state, waits for it. Which passes and rows there are depends on options and parameters
alone, so that processes that do not all have a gradient still meet; a shard without a gradient stays, and adds nothing.

Bytes added up per step and sharded tensor: 20 for float32 and half precision, and 4 with `skip_nonfinite`; for float64 twice as
many; without plasticity (strength 0) the 20 fall away.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.shards import Reduction, add_up, added_up_over, is_sharded, local
from .checks import check_lists
from .passes import COLUMNS, Shard, is_plastic, measures
from .reference import Hyperparameters, NeuronFactor
from .storage import state_dtype

ROWS, BOXES, PENDING = "rows of sums", "boxes of shards", "reductions under way"  # in a workspace
WIDTH = COLUMNS["apply"].stop


class Rows(NamedTuple):
    """What is added up over the processes of `key`: rows [tensors, WIDTH] of the tensors at these places of a list."""

    key: Any
    values: Tensor
    places: list[int]


class Local(NamedTuple):
    """A list's step on this process: its passes, and the rows that these leave."""

    passes: Iterator[str]
    rows: list[Rows]
    arguments: dict[str, Any]


class Arrival(NamedTuple):
    """The sums of some states, the rows, at these places, that are put into them, and which stay as they are, None for none."""

    sums: list[Tensor]
    rows: Tensor
    places: list[int]
    stays: Tensor | None

    def finish(self) -> None:
        new = self.rows[self.places, COLUMNS["apply"]]
        if self.stays is not None:
            new = torch.where(self.stays.unsqueeze(1), torch.stack(self.sums), new)
        torch._foreach_copy_(self.sums, list(new.unbind()))


def refuse_stripes(param: Any) -> None:
    """Raises RuntimeError where a process holds rows that are not neighbours: the first tells nothing of the others' place."""
    mesh, placements = param.device_mesh, param.placements
    for dim, placement in enumerate(placements):
        factor = getattr(placement, "split_factor", None)
        inner = (
            [d for d in range(dim + 1, mesh.ndim) if getattr(placements[d], "dim", None) == placement.dim]
            if factor
            else []
        )
        if factor not in (None, math.prod(map(mesh.size, inner))):
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} is split into stripes, {placements}; redistribute it to Shard "
                "placements before the optimizer takes it"
            )


def settle(workspaces: Sequence[dict[Any, Any]]) -> None:
    """Waits for the sums of the last step, and puts them into the states. Call before the states are read."""
    for workspace in workspaces:
        for each in workspace.pop(PENDING, []):
            each.finish()


def run(steps: Sequence[tuple[Callable[..., Iterator[str]], dict[str, Any]]]) -> None:
    """The steps of several lists, pass by pass. steps: of each list the form and its arguments, `workspace` among them.

    Sums of shards are in the states after `settle` only.
    """
    workspaces = [arguments["workspace"] for _, arguments in steps]
    settle(workspaces)
    lists = [_localized(form, **arguments) for form, arguments in steps]
    running = lists
    while running:
        names = [next(each.passes, None) for each in running]
        measured = [
            (each, COLUMNS[name]) for each, name in zip(running, names, strict=True) if name not in (None, "apply")
        ]
        for reduction in _reductions(measured, waits=True):
            reduction.finish()
        running = [each for each, name in zip(running, names, strict=True) if name is not None]
    left = [(each, COLUMNS["apply"]) for each in lists if _leaves_sums(each.arguments)]
    pending = [*_reductions(left, waits=False), *(arrival for each in lists for arrival in _arrivals(each))]
    if pending:
        workspaces[0][PENDING] = pending


def _leaves_sums(arguments: dict[str, Any]) -> bool:
    """Whether the last pass leaves sums to be added up."""
    rule = Hyperparameters(**{name: arguments[name] for name in Hyperparameters._fields if name in arguments})
    return is_plastic(rule) and not measures(rule)


def _localized(
    form: Callable[..., Iterator[str]],
    params: Sequence[Any],
    grads: Sequence[Any],
    states: Sequence[dict[str, Any]],
    workspace: dict[Any, Any],
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    **options: Any,
) -> Local:
    """The step of a list's local tensors. Raises as `check_lists`, of which the whole tensors are asked first."""
    arguments = {"grads": grads, "states": states, **options}
    if not any(map(is_sharded, params)):
        passes = form(params, grads, states, workspace=workspace, neuron_factors=neuron_factors, **options)
        return Local(passes, [], arguments)
    check_lists(params, grads, states, neuron_factors)
    boxes = [_box(param, workspace) if is_sharded(param) else None for param in params]
    held = [dict(state) for state in states]
    rows = _rows(params, grads, held, workspace)
    factors = list(neuron_factors or [None] * len(params))
    for number, box in enumerate(boxes):
        factor = factors[number]
        if box is not None and factor is not None:
            dim = factor.dim % params[number].ndim
            size = params[number]._local_tensor.shape[dim]
            factors[number] = factor._replace(values=factor.values.narrow(0, box.starts[dim], size))
        held[number] = {name: local(value) for name, value in held[number].items()}
    gradients = [None if grad is None else aligned(param, grad) for param, grad in zip(params, grads, strict=True)]
    passes = form(
        list(map(local, params)), gradients, held, workspace=workspace, shards=boxes,
        neuron_factors=None if neuron_factors is None else factors, **options,
    )  # fmt: skip
    return Local(passes, rows, arguments)


def _box(param: Any, workspace: dict[Any, Any]) -> Shard:
    """Where this process's part of a parameter lies."""
    place = param.shape, param.device_mesh, param.placements
    boxes = workspace.setdefault(BOXES, {})
    if place not in boxes:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        refuse_stripes(param)
        _, starts = compute_local_shape_and_global_offset(*place)
        boxes[place] = Shard(tuple(param.shape), tuple(starts) or (0,) * param.ndim)
    found: Shard = boxes[place]
    return found


def _rows(params: Sequence[Any], grads: Sequence[Any], states: list[Any], workspace: dict[Any, Any]) -> list[Rows]:
    """Rows for the sharded tensors, in memory that stays the same; in their `states` the rows take the place of the sums."""
    places: dict[Any, list[int]] = {}
    for number, param in enumerate(params):
        if is_sharded(param):
            places.setdefault(added_up_over(param, state_dtype(param)), []).append(number)
    held, rows = workspace.setdefault(ROWS, {}), list[Rows]()
    for key, numbers in places.items():
        if key not in held or len(held[key]) != len(numbers):
            held[key] = torch.empty(len(numbers), WIDTH, dtype=key[2], device=key[3])
        values = held[key].zero_()
        rows.append(Rows(key, values, numbers))
        stepped = [(row, states[n]) for row, n in zip(values.unbind(), numbers, strict=True) if grads[n] is not None]
        known = [state["sums"] for _, state in stepped]
        for row, state in stepped:
            state |= {"sums": row[COLUMNS["apply"]], "nonfinite": row[0]}
        if stepped:
            torch._foreach_copy_([state["sums"] for _, state in stepped], known)
    return rows


def _reductions(left: Sequence[tuple[Local, slice]], waits: bool) -> list[Reduction]:
    """Starts to add these columns of the lists' rows up."""
    return add_up([(rows.key, rows.values[:, columns]) for each, columns in left for rows in each.rows], waits)


def _arrivals(each: Local) -> Iterator[Arrival]:
    """Where the sums of a list's stepped tensors go: not to those of an overflow, and not to those that are skipped."""
    grads, states = each.arguments["grads"], each.arguments["states"]
    found_inf, skips = each.arguments.get("found_inf"), each.arguments.get("skip_nonfinite")
    for _, values, numbers in each.rows:
        places = [place for place, number in enumerate(numbers) if grads[number] is not None]
        stays = values[places, 0] > 0 if skips else None
        if found_inf is not None:
            overflow = (found_inf != 0).to(values.device).expand(len(places))
            stays = overflow if stays is None else stays | overflow
        if places:
            yield Arrival([states[numbers[place]]["sums"] for place in places], values, places, stays)


def aligned(param: Any, grad: Any) -> Tensor:
    """The local gradient, split as the parameter is."""
    if not is_sharded(param):
        return grad
    if not is_sharded(grad):
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} is sharded, but its gradient is a {type(grad).__name__}; give a "
            "DTensor on the same mesh, as backward() does"
        )
    placed = grad if grad.placements == param.placements else grad.redistribute(placements=param.placements)
    return local(placed)
