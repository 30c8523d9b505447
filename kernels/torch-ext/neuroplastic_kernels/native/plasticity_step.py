"""The compiled CPU form of `plasticity_step`: plasticity_step.cpp, called once for all tensors.

Sums are taken in a fixed order of fixed blocks: the result does not depend on the number of threads.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..reference.plasticity_formulas import Hyperparameters, Moment, NeuronFactor, moment
from ..reference.plasticity_options import Options, careful_step, gradient_factor
from ..reference.plasticity_step import is_flat
from .compiler import load

SOURCE = Path(__file__).with_suffix(".cpp")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
BASES = {"gradient": 0, "adamw": 1, "momentum": 2}


class TensorRecord(ctypes.Structure):
    """`Tensor` of plasticity_passes.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("param", "grad", "trace", "exp_avg", "exp_avg_sq")),
        *((name, ctypes.c_int64) for name in ("numel", "dtype")),
        *((name, ctypes.c_double) for name in ("blend", "correction", "gain")),
        ("factors", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("neurons", "stride")),
    )


class RuleRecord(ctypes.Structure):
    """`Rule` of plasticity_passes.h."""

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


def takes(param: Tensor, grad: Tensor, *state: Tensor) -> bool:
    """Whether the compiled form takes a tensor: all flat and on the CPU, the gradient of the parameter's dtype, the state
    float64 for float64 and float32 for the others."""
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    streams = (param, grad, *state)
    return (
        param.dtype in DTYPES
        and [stream.dtype for stream in streams] == [param.dtype, param.dtype, wide, wide, wide]
        and all([stream.is_cpu for stream in streams])
        and all(map(is_flat, streams))
        and len(set(map(Tensor.numel, streams))) == 1
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


def tensor_record(streams: Sequence[Tensor], now: Moment, neurons: NeuronFactor | None) -> TensorRecord:
    """One tensor of `takes`. streams: p, g, a, m and v."""
    param = streams[0]
    record = TensorRecord(*map(Tensor.data_ptr, streams), param.numel(), DTYPES[param.dtype], *now)
    if neurons is not None:
        record.factors, record.neurons = neurons.values.data_ptr(), neurons.values.numel()
        record.stride = math.prod(param.shape[neurons.dim % param.ndim + 1 :])
    return record


def run(tensors: Sequence[Sequence[Any]], rule: RuleRecord, hyper: Hyperparameters, workspace: dict[Any, Any]) -> None:
    """Step tensors that `takes` accepts, each given as its five streams, its step counter and its neurons' factors."""
    moment_of = cache(lambda step: moment(step, hyper))  # most tensors have done as many steps
    records = []
    for *streams, step, neurons in tensors:
        step += 1
        records.append(tensor_record(streams, moment_of(step.item()), neurons))
    table, threads = (TensorRecord * len(records))(*records), torch.get_num_threads()
    room = room_for(workspace, max(record.numel for record in records), threads)
    compiled().plasticity_step(table, len(table), rule, room.data_ptr(), threads)
    increment_version([streams[k] for streams in tensors for k in (0, 2, 3, 4)])  # written behind torch's back


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
    """`reference.plasticity_options.plasticity_step`, whose arguments and errors these are, for CPU tensors.

    What `takes` refuses, 8-bit state and stochastic rounding go the way of the reference.
    """
    rule, workspace = Hyperparameters(**hyper), {} if workspace is None else workspace
    options = Options(grad_scale, None, max_grad_norm, stochastic_rounding, seed, gradient_squares)
    if found_inf is not None and found_inf.item():
        return
    factor = gradient_factor([grad for grad in grads if grad is not None], options)
    taken: list[Sequence[Any]] = []
    for number, streams in enumerate(zip(params, grads, traces, exp_avgs, exp_avg_sqs, steps, strict=True)):
        if streams[1] is None:
            continue
        scale = None if scales is None else scales[number]
        neurons = None if neuron_factors is None else neuron_factors[number]
        rounds = stochastic_rounding and streams[0].dtype == torch.bfloat16
        if scale is None and not rounds and takes(*streams[:-1]):
            taken.append((*streams, neurons))
        else:
            careful_step(streams, scale, number, factor, options, neurons, workspace=workspace, **hyper)
    if taken:
        run(taken, rule_record(rule, factor), rule, workspace)


def load_plasticity_step() -> Callable[..., None]:
    """`plasticity_step`, once its library is built. Raises RuntimeError where that fails."""
    compiled()
    return plasticity_step
