"""The compiled CPU form of `plasticity_step`: native.cpp, called once for all tensors, on a table of their addresses."""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..common.compiler import load
from . import reference
from .lists import Lists, State, begin, left_out
from .reference import SUMS, Hyperparameters, NeuronFactor
from .storage import is_flat, state_dtype

SOURCE = Path(__file__).with_suffix(".cpp")
BASES = {"gradient": 0, "adamw": 1, "momentum": 2}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class TensorRecord(ctypes.Structure):
    """`Tensor` of native.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("param", "exp_avg", "exp_avg_sq", "trace", "sums", "step", "skipped")),
        ("factors", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("numel", "dtype", "neurons", "stride")),
    )


class RuleRecord(ctypes.Structure):
    """`Rule` of native.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("base", "exact", "skip_nonfinite")),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "trace_decay")),
        ("weights", ctypes.c_double * 3),
        *((name, ctypes.c_double) for name in ("lowest", "highest", "scale", "strength", "warmup_steps")),
        *((name, ctypes.c_double) for name in ("max_update_norm", "target_rms", "homeostatic_rate", "eps")),
        *((name, ctypes.c_double) for name in ("coupled_decay", "decoupled_decay", "gradient_factor")),
    )


class Table(NamedTuple):
    """Tensors that the library takes: their places in the lists, and an array of their records."""

    members: list[int]
    records: Any


@cache
def compiled() -> ctypes.CDLL:
    """The library of the source, built on first use. Raises RuntimeError where that fails."""
    library = load(SOURCE)
    library.plasticity_step.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
    )
    library.plasticity_step.restype = None
    return library


def rule_record(hyper: Hyperparameters, factor: Tensor | None, skip_nonfinite: bool) -> RuleRecord:
    """One step's options. factor: what gradients are multiplied by."""
    sign = -1.0 if hyper.maximize else 1.0
    return RuleRecord(
        BASES[hyper.base],
        hyper.statistics == "exact",
        skip_nonfinite,
        float(hyper.lr),
        *hyper.betas,
        hyper.trace_decay,
        tuple(hyper.signal_weights),
        *hyper.alpha_range,
        hyper.plasticity_scale,
        hyper.strength,
        hyper.warmup_steps,
        math.inf if hyper.max_update_norm is None else hyper.max_update_norm,
        hyper.target_rms,
        hyper.homeostatic_rate,
        hyper.eps,
        0.0 if hyper.decoupled_weight_decay else hyper.weight_decay,
        hyper.weight_decay if hyper.decoupled_weight_decay else 0.0,
        sign if factor is None else sign * factor.item(),
    )


def is_taken(param: Tensor, grad: Tensor, state: State, skips: bool) -> bool:
    """Whether the library takes a tensor: plain numbers in this process's memory, not 8-bit codes."""
    wide = state_dtype(param)
    dtypes = dict.fromkeys(("exp_avg", "exp_avg_sq", "trace", "sums"), wide) | {
        "step": torch.float32,
        "skipped": torch.float32,
    }
    numels = {"sums": SUMS, "step": 1, "skipped": 1}
    return (
        param.dtype in DTYPES
        and grad.dtype == param.dtype
        and state.keys() <= dtypes.keys()
        and (not skips or "skipped" in state)
        and all(each.is_cpu and is_flat(each) for each in (param, grad, *state.values()))
        and all(
            each.dtype == dtypes[name] and each.numel() == numels.get(name, param.numel())
            for name, each in state.items()
        )
    )


def tensor_record(param: Tensor, state: State, neurons: NeuronFactor | None) -> TensorRecord:
    """One tensor of `is_taken`."""
    addresses = {name: each.data_ptr() for name, each in state.items()}
    found = TensorRecord(param=param.data_ptr(), **addresses, numel=param.numel(), dtype=DTYPES[param.dtype])
    if neurons is not None:
        found.factors, found.neurons = neurons.values.data_ptr(), neurons.values.numel()
        found.stride = math.prod(param.shape[neurons.dim % param.ndim + 1 :])
    return found


def prepare(skips: bool, rounds: bool, lists: Lists) -> tuple[list[Table], list[int]]:
    """The table of the tensors that the library takes, and the places of the others. lists: of `begin`.

    skips: whether tensors may be skipped. rounds: whether bfloat16 parameters are rounded at random, which is not for here.
    """
    params, grads, states, factors = lists
    members, others = list[int](), list[int]()
    for number, param in enumerate(params):
        taken = is_taken(param, grads[number], states[number], skips) and not (rounds and param.dtype == torch.bfloat16)
        (members if taken else others).append(number)
    records = [tensor_record(params[n], states[n], None if factors is None else factors[n]) for n in members]
    return [Table(members, (TensorRecord * len(records))(*records))], others


@torch.no_grad()
def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[State],
    *,
    gradient_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    skip_nonfinite: bool = False,
    stochastic_rounding: bool = False,
    seed: int = 0,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> None:
    """`reference.plasticity_step`, whose arguments, errors and results, but for the order of sums, these are.

    `workspace` holds the table: one dict for each list of tensors. Tensors that the library does not take (8-bit state, not
    contiguous, sharded, with a gradient of another dtype, with stochastic rounding) go to the reference.
    """
    rule, workspace = Hyperparameters(**hyper), {} if workspace is None else workspace
    lists, kinds = Lists(params, grads, states, neuron_factors), (skip_nonfinite, stochastic_rounding)
    step = begin(workspace, lists, ("native", *kinds), partial(prepare, *kinds))
    (members, records) = step.prepared.tables[0]
    if members and not (found_inf is not None and found_inf.item()):
        gradients = (ctypes.c_void_p * len(members))(*(step.addresses[member] for member in members))
        record = rule_record(rule, gradient_factor, skip_nonfinite)
        threads = torch.get_num_threads()
        compiled().plasticity_step(records, gradients, len(members), ctypes.byref(record), threads)
        increment_version(step.stepped)  # behind torch's back
    theirs = left_out(step, grads)
    if theirs is not None:
        reference.plasticity_step(
            params,
            theirs,
            states,
            gradient_factor=gradient_factor,
            found_inf=found_inf,
            skip_nonfinite=skip_nonfinite,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            neuron_factors=neuron_factors,
            **hyper,
        )


def load_plasticity_step() -> Callable[..., None]:
    """`plasticity_step`, once its library is built. Raises RuntimeError where that fails."""
    compiled()
    return plasticity_step
