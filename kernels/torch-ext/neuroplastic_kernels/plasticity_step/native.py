"""The compiled CPU form of `plasticity_step`: native.cpp, called once for all tensors.

Sums are taken in a fixed order of fixed blocks: the result does not depend on the number of threads.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..common.compiler import load
from .formulas import Hyperparameters, NeuronFactor, moment
from .options import Options, careful_step, gradient_factor
from .tensor_table import TensorRecord, TensorTable, table_for

SOURCE = Path(__file__).with_suffix(".cpp")
BASES = {"gradient": 0, "adamw": 1, "momentum": 2}
ONE = torch.ones(())


class RuleRecord(ctypes.Structure):
    """`Rule` of native_passes.h."""

    _fields_ = (
        ("base", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "trace_decay")),
        *((name, ctypes.c_double) for name in ("trace_weight", "gradient_weight", "memory_weight")),
        *((name, ctypes.c_double) for name in ("lowest", "highest", "strength")),
        *((name, ctypes.c_double) for name in ("max_update_norm", "target_rms", "homeostatic_rate", "eps")),
        *((name, ctypes.c_double) for name in ("coupled_decay", "decoupled_decay", "gradient_factor")),
    )


def rule_record(hyper: Hyperparameters, factor: Tensor | None) -> RuleRecord:
    """One step's options. factor: what gradients are multiplied by before anything else."""
    sign = -1.0 if hyper.maximize else 1.0
    return RuleRecord(
        BASES[hyper.base],
        float(hyper.lr),
        *hyper.betas,
        hyper.trace_decay,
        *hyper.signal_weights,
        *hyper.alpha_range,
        hyper.strength,
        -1.0 if hyper.max_update_norm is None else hyper.max_update_norm,
        hyper.target_rms,
        hyper.homeostatic_rate,
        hyper.eps,
        0.0 if hyper.decoupled_weight_decay else hyper.weight_decay,
        hyper.weight_decay if hyper.decoupled_weight_decay else 0.0,
        sign if factor is None else sign * factor.item(),
    )


@cache
def compiled() -> ctypes.CDLL:
    """The library of the source, built on first use. Raises RuntimeError where that fails."""
    library, integer = load(SOURCE), ctypes.c_int64
    library.room_size.argtypes, library.room_size.restype = (integer, integer), integer
    library.plasticity_step.argtypes = (
        ctypes.POINTER(TensorRecord), integer, ctypes.POINTER(RuleRecord), ctypes.c_void_p, integer
    )  # fmt: skip
    library.plasticity_step.restype = None
    return library


def room_for(workspace: dict[Any, Any], largest: int, threads: int) -> Tensor:
    """Memory of `workspace` for the threads of a step of tensors of at most `largest` elements."""
    size = compiled().room_size(largest, threads)
    if "native" not in workspace or workspace["native"].numel() < size:
        workspace["native"] = torch.empty(size, dtype=torch.float64)
    return workspace["native"]


def run(
    table: TensorTable,
    lists: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    rule: RuleRecord,
    hyper: Hyperparameters,
    workspace: dict[Any, Any],
) -> None:
    """Step the tensors of a table that have a gradient. lists: p, a, m and v of all tensors."""
    moment_of = cache(lambda step: moment(step, hyper))  # most tensors have done as many steps
    counters = [steps[index] for index in table.stepped]
    torch._foreach_add_(counters, ONE)
    for record, counter in zip(table.active, counters, strict=True):
        record.blend, record.correction, record.gain = moment_of(counter.item())
    table.forget_written_sums(lists[1])
    threads = torch.get_num_threads()
    room = room_for(workspace, max(record.numel for record in table.records), threads)
    compiled().plasticity_step(table.array, len(table.array), rule, room.data_ptr(), threads)
    increment_version([written[index] for index in table.stepped for written in lists])  # behind torch's back
    table.remember_sums(lists[1])


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
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> None:
    """`options.plasticity_step`, whose arguments and errors these are, for CPU tensors.

    What `tensor_table.takes` refuses, 8-bit state and stochastic rounding go the way of the reference.
    """
    rule, workspace = Hyperparameters(**hyper), {} if workspace is None else workspace
    options = Options(grad_scale, None, max_grad_norm, stochastic_rounding, seed, gradient_squares)
    if found_inf is not None and found_inf.item():
        return
    factor = gradient_factor([grad for grad in grads if grad is not None], options)
    lists, absent = (params, traces, exp_avgs, exp_avg_sqs), [None] * len(params)
    rounds = [stochastic_rounding and param.dtype == torch.bfloat16 for param in params]
    left_out = [rounded or scale is not None for rounded, scale in zip(rounds, scales or absent, strict=True)]
    neurons = absent if neuron_factors is None else neuron_factors
    table = table_for(workspace, grads, lists, steps, neurons, left_out)
    taken = set(table.stepped)
    for number, grad in enumerate(grads):
        if grad is not None and number not in taken:
            streams = (params[number], grad, *(each[number] for each in (*lists[1:], steps)))
            scale = None if scales is None else scales[number]
            careful_step(streams, scale, number, factor, options, neurons[number], workspace=workspace, **hyper)
    if table.stepped:
        run(table, lists, steps, rule_record(rule, factor), rule, workspace)


def load_plasticity_step() -> Callable[..., None]:
    """`plasticity_step`, once its library is built. Raises RuntimeError where that fails."""
    compiled()
    return plasticity_step
