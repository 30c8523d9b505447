"""The compiled CPU form of `plasticity_step`: native.cpp, called once a pass for all tensors, on a table of their addresses."""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..common.compiler import load
from .lists import Lists, State, begin, is_sound, leave_others, neuron_layout
from .passes import COLUMNS, Shard, measures, passes
from .reference import Hyperparameters, NeuronFactor

SOURCE = Path(__file__).with_suffix(".cpp")
BASES = {"gradient": 0, "adamw": 1, "momentum": 2}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
PASSES = {name: number for number, name in enumerate(COLUMNS)}
STATE = ("exp_avg", "exp_avg_sq", "trace", "sums", "nonfinite", "step", "skipped")


class Table(NamedTuple):
    """Tensors that the library takes: their places in the lists, and their records, an int64 per field.

    nonfinite: a number for each, for what states of whole tensors do not hold.
    """

    members: list[int]
    records: Any
    nonfinite: Tensor


def rule_record(hyper: Hyperparameters, factor: Tensor | None) -> Any:
    """`Rule` of native.cpp, all doubles. factor: what gradients are multiplied by."""
    sign, decoupled = -1.0 if hyper.maximize else 1.0, hyper.decoupled_weight_decay
    values = (
        BASES[hyper.base], measures(hyper), hyper.skip_nonfinite, hyper.stochastic_rounding, hyper.lr, *hyper.betas,
        hyper.trace_decay,
        *hyper.signal_weights, *hyper.alpha_range, hyper.plasticity_scale, hyper.strength, hyper.warmup_steps,
        math.inf if hyper.max_update_norm is None else hyper.max_update_norm, hyper.target_rms, hyper.homeostatic_rate,
        hyper.eps, 0.0 if decoupled else hyper.weight_decay, hyper.weight_decay if decoupled else 0.0,
        sign if factor is None else sign * factor.item(),
    )  # fmt: skip
    return (ctypes.c_double * len(values))(*map(float, values))


def is_taken(param: Tensor, grad: Tensor, state: State, skips: bool) -> bool:
    """Whether the library takes a tensor: plain numbers in this process's memory, not 8-bit codes."""
    kinds = param.dtype in DTYPES and grad.dtype == param.dtype and param.is_cpu and "scales" not in state
    return kinds and is_sound(param, grad, state, skips)


def tensor_record(lists: Lists, number: int, nonfinite: Tensor) -> list[int]:
    """`Tensor` of native.cpp, for one of `is_taken`."""
    param, state = lists.params[number], {"nonfinite": nonfinite} | lists.states[number]
    kept = [state[name].data_ptr() if name in state else 0 for name in STATE]
    factors, count, stride = neuron_layout(param, lists.factor(number))
    of_whole = [lists.whole(number), lists.origin(number) or 0, number]
    return [param.data_ptr(), *kept, factors, param.numel(), DTYPES[param.dtype], count, stride, *of_whole]


def prepare(skips: bool, rounds: bool, lists: Lists) -> tuple[list[Table], list[int]]:
    """The table of the tensors that the library takes, and the places of the others. lists: of `begin`.

    skips: whether tensors may be skipped. rounds: whether bfloat16 parameters are rounded at random.
    """
    members, others = list[int](), list[int]()
    for number, (param, grad, state) in enumerate(zip(lists.params, lists.grads, lists.states, strict=True)):
        numbered = not (rounds and param.dtype == torch.bfloat16) or lists.origin(number) is not None
        (members if numbered and is_taken(param, grad, state, skips) else others).append(number)
    nonfinite = torch.zeros(len(members), dtype=torch.float64, device="cpu")
    fields = [value for n, flag in zip(members, nonfinite, strict=True) for value in tensor_record(lists, n, flag)]
    return [Table(members, (ctypes.c_int64 * len(fields))(*fields), nonfinite)], others


@torch.no_grad()
def plasticity_passes(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[State],
    *,
    gradient_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    shards: Sequence[Shard | None] | None = None,
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> Iterator[str]:
    """`reference.plasticity_passes`, whose arguments, errors and results, but for the order of sums, these are.

    `workspace` holds the table: one dict for each list of tensors. Tensors that the library does not take (8-bit state, not
    contiguous, with a gradient of another dtype; columns of a bfloat16 tensor that is rounded at random) go to the reference.
    """
    rule, workspace = Hyperparameters(**hyper), {} if workspace is None else workspace
    lists, kinds = Lists(params, grads, states, neuron_factors, shards), (rule.skip_nonfinite, rule.stochastic_rounding)
    step = begin(workspace, lists, ("native", *kinds), partial(prepare, *kinds))
    left = leave_others(step, lists, gradient_factor=gradient_factor, found_inf=found_inf, **hyper)
    (members, records, _) = step.prepared.tables[0]
    runs = bool(members) and not (found_inf is not None and found_inf.item())
    gradients = (ctypes.c_void_p * len(members))(*(step.addresses[member] for member in members))
    count, threads, seed = (
        ctypes.c_int64(len(members)),
        ctypes.c_int64(torch.get_num_threads()),
        ctypes.c_uint64(rule.seed),
    )
    record = rule_record(rule, gradient_factor) if runs else None
    for name in passes(rule):
        if runs:
            load(SOURCE).plasticity_step(records, gradients, count, record, seed, ctypes.c_int64(PASSES[name]), threads)
        if runs and name == "apply":
            increment_version(step.stepped)  # behind torch's back
        next(left, None)
        yield name


def load_plasticity_passes() -> Callable[..., Iterator[str]]:
    """`plasticity_passes`, once its library is built. Raises RuntimeError where that fails."""
    load(SOURCE)
    return plasticity_passes
