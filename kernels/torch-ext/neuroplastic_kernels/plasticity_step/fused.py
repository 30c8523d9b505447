"""One step of the NeuroPlastic optimizer over lists of tensors: three launches for all tensors of a kind.

`reference` in Triton; `fused_kernels` says what each launch does. Nothing waits for the device, the same
state and gradients give the same bits, and nothing is allocated while the tensors stay where they are; gradients may move.
After one step outside, a step can be captured in a CUDA graph.

Kernels write behind torch's back, so a step counts its writes to parameters and traces itself (`tensor._version`). From that
autograd sees that a graph is stale, and the next step whether something else wrote a trace in between: if not, the sums that
this step left of it are true. What torch does not count, such as writes through `.data`, makes one step's mean that of before.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from ..common.tensor_places import tensor_places
from .formulas import Hyperparameters, NeuronFactor
from .fused_formulas import Rule
from .fused_gradient_squares import gradient_squares as fused_gradient_squares
from .fused_kernels import SUMS, apply_kernel, signals_kernel, update_kernel
from .geometry import DTYPES, geometry, is_captured, is_readable
from .launching import relaunch
from .lists import check_lists, whereabouts
from .options import plasticity_step as plasticity_step_reference
from .pointer_tables import VECTOR, Plan, Streams, filter_none
from .reference import is_flat


@dataclass
class Prepared:
    """What stays valid from step to step: which of the tensors are fused, by which plan, and which are not."""

    key: Any
    plans: dict[torch.device, Plan]
    others: list[int]
    may_return: bool  # whether only their gradients keep some of the others out
    gradients: Any = None  # the places of those that the plans point at

    def take_gradients(self, grads: Sequence[Tensor | None]) -> bool:
        """Let every plan point at these gradients; False where tensors with such gradients may be sorted in another way."""
        places, first = tensor_places([*grads]), self.gradients is None
        if places != self.gradients:
            self.gradients = None
            if self.may_return and not first:
                return False
            if not all(plan.take_gradients(grads) for plan in self.plans.values()):
                return False
            self.gradients = places
        return True


def is_fusible(tensor: Streams) -> bool:
    """Whether the kernels take a tensor: flat, on one device, of their dtypes, with a step counter they can reach."""
    floats = [tensor.param] if tensor.grad is None else [tensor.param, tensor.grad]
    states = [tensor.trace, tensor.exp_avg, tensor.exp_avg_sq]
    return (
        all(map(is_readable, floats))
        and all(state.dtype == torch.float32 or tensor.scales is not None for state in states)
        and all(map(is_flat, states))
        and all(stream.device == tensor.param.device for stream in (*floats, *states, tensor.step))
        and (tensor.neurons is None or tensor.param.numel() < 2**30)  # neurons are found in 32 bits
    )


@torch.inference_mode(False)  # tables are written again, in whatever mode a later step is
def prepare(key: Any, tensors: Sequence[Streams]) -> Prepared:
    """Sort the tensors by device and plan each device's."""
    fused: dict[torch.device, list[int]] = {}
    others = []
    for index, tensor in enumerate(tensors):
        if is_fusible(tensor):
            fused.setdefault(tensor.param.device, []).append(index)
        else:
            others.append(index)
    plans = {device: Plan(tensors, indices, geometry().chunk, SUMS) for device, indices in fused.items()}
    return Prepared(key, plans, others, any(is_fusible(tensors[index]._replace(grad=None)) for index in others))


def refreshed(
    workspace: dict[Any, Any],
    grads: Sequence[Tensor | None],
    dense: Sequence[Sequence[Tensor]],
    scales: Sequence[Tensor | None] | None,
    factors: Sequence[NeuronFactor | None] | None,
) -> Prepared:
    """What was prepared for these tensors, or new, its tables pointing at these gradients.

    dense: params, traces, exp_avgs, exp_avg_sqs, steps. Inside a CUDA graph everything is new, and kept for the graph alone.
    """
    key, params = whereabouts((*dense, scales or ()), factors or ()), dense[0]
    capturing, held = is_captured(params[0]), workspace.get("prepared")
    if held is None or capturing or held.key != key or not held.take_gradients(grads):
        check_lists(params, grads, dense[1:4], dense[4], factors)
        absent = [None] * len(params)
        columns = (params, grads, *dense[1:], scales or absent, factors or absent)
        held = prepare(key, [Streams(*row) for row in zip(*columns, strict=True)])
        held.take_gradients(grads)
        if capturing:
            workspace.setdefault("captured", []).append(held)
        else:
            workspace["prepared"] = held
    return held


def kernel_rule(hyper: Hyperparameters, device: torch.device, clip: float | None, **scalars: Tensor | None) -> Rule:
    """The options as kernel arguments; complements are taken here, in double precision."""
    beta1, beta2 = hyper.betas
    coupled = hyper.weight_decay if hyper.weight_decay and not hyper.decoupled_weight_decay else None
    on_device = {name: None if value is None else value.to(device) for name, value in scalars.items()}
    return Rule(
        base=tl.constexpr(hyper.base),
        signals=tl.constexpr(hyper.signals if hyper.strength else "none"),
        keep_trace=float(hyper.trace_decay),
        take_trace=1.0 - hyper.trace_decay,
        keep_avg=float(beta1),
        take_avg=1.0 - beta1,
        keep_sq=float(beta2),
        take_sq=1.0 - beta2,
        log_beta1=math.log(beta1) if beta1 else -math.inf,
        log_beta2=math.log(beta2) if beta2 else -math.inf,
        eps=float(hyper.eps),
        trace_weight=float(hyper.signal_weights[0]),
        gradient_weight=float(hyper.signal_weights[1]),
        memory_weight=float(hyper.signal_weights[2]),
        lower=float(hyper.alpha_range[0]),
        upper=float(hyper.alpha_range[1]),
        scale=float(hyper.plasticity_scale),
        strength=float(hyper.strength),
        warmup=float(hyper.warmup_steps) if hyper.warmup_steps else None,
        sign=-1.0 if hyper.maximize else 1.0,
        gradient_decay=float(coupled) if coupled and hyper.base != "gradient" else None,
        update_decay=float(coupled) if coupled and hyper.base == "gradient" else None,
        parameter_decay=float(hyper.weight_decay) if hyper.weight_decay and coupled is None else None,
        max_update_norm=None if hyper.max_update_norm is None else float(hyper.max_update_norm),
        homeostatic_rate=float(hyper.homeostatic_rate) if hyper.homeostatic_rate else None,
        target_rms=float(hyper.target_rms),
        max_grad_norm=None if clip is None else float(clip),
        lr=0.0 if isinstance(hyper.lr, Tensor) else float(hyper.lr),
        lr_tensor=hyper.lr.to(device) if isinstance(hyper.lr, Tensor) else None,
        **on_device,
    )


def argument_types(rule: Rule) -> tuple[Any, ...]:
    """What of a rule decides which compiled kernel takes it; scalars on the device may lie anywhere in a tensor."""
    scalars = [value for value in rule if isinstance(value, Tensor)]
    places = [(scalar.dtype, scalar.data_ptr() % VECTOR) for scalar in scalars]
    return rule.base.value, rule.signals.value, *map(type, rule), *places


def launch(kernel: Any, plan: Plan, rule: Rule, types: tuple[Any, ...], *arguments: Any) -> None:
    """One launch per kind of tensor. types: `argument_types` of the rule; arguments: further constants and whole numbers."""
    shape = geometry()
    types = *types, *(value if isinstance(value, bool) else value.bit_length() > 31 for value in arguments)
    for kind, start, chunks in plan.buckets:
        relaunch(
            plan.compiled, (kernel.__name__, start, types), kernel, chunks,
            plan.fields, plan.owners, plan.partials, plan.chunks, start, rule, *arguments,
            DTYPES[kind.param], DTYPES[kind.grad], kind.eight_bit, kind.aligned, shape.chunk, shape.block,
            num_warps=shape.warps,
        )  # fmt: skip


def run(
    plan: Plan,
    rule: Rule,
    params: Sequence[Tensor],
    traces: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None,
    seed: int,
    stochastic_rounding: bool,
    trust: bool,
) -> None:
    """All launches of one step on one device. trust: whether nothing wrote a trace that torch does not count."""
    mine, types = (
        [*plan.pick(traces), *([] if scales is None else filter_none(plan.pick(scales)))],
        argument_types(rule),
    )
    known = trust and all(plan.counts.unwritten(mine))
    launch(signals_kernel, plan, rule, types, not known)
    launch(update_kernel, plan, rule, types)
    launch(apply_kernel, plan, rule, types, seed, stochastic_rounding)
    increment_version([*mine, *compress(plan.pick(params), plan.gradients)])
    if rule.signals.value == "all":
        plan.counts.remember(mine)
    else:
        plan.counts.forget()  # nothing has added up the traces


@torch.no_grad()
def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    traces: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    workspace: dict[Any, Any] | None = None,
    scales: Sequence[Tensor | None] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    max_grad_norm: float | None = None,
    stochastic_rounding: bool = False,
    seed: int = 0,
    gradient_squares: Tensor | None = None,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    **hyper: Any,
) -> None:
    """Step every parameter tensor that has a gradient once, in place.

    The arguments of `options.plasticity_step`, and its results but for the order of sums. `workspace`
    holds the tables: one dict for each list of tensors. Tensors the kernels do not take (float64, not contiguous, sharded,
    with a step counter on another device) go to the reference.
    """
    dense = (params, traces, exp_avgs, exp_avg_sqs, steps)
    hyperparameters = Hyperparameters(**hyper)
    if not params:
        check_lists(params, grads, dense[1:4], steps, neuron_factors)
        return
    if isinstance(hyperparameters.lr, Tensor) and hyperparameters.lr.is_cpu:
        hyperparameters = hyperparameters._replace(lr=hyperparameters.lr.item())
    workspace = {} if workspace is None else workspace
    prepared = refreshed(workspace, grads, dense, scales, neuron_factors)
    if max_grad_norm is not None and gradient_squares is None:
        gradient_squares = fused_gradient_squares([g for g in grads if g is not None], workspace=workspace)
    scaling = {"grad_scale": grad_scale, "found_inf": found_inf, "gradient_squares": gradient_squares}
    for device, plan in prepared.plans.items():
        rule = kernel_rule(hyperparameters, device, max_grad_norm, **scaling)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            run(plan, rule, params, traces, scales, seed, stochastic_rounding, trust="captured" not in workspace)
    if prepared.others:
        theirs = [grad if index in prepared.others else None for index, grad in enumerate(grads)]
        plasticity_step_reference(
            params, theirs, traces, exp_avgs, exp_avg_sqs, steps, scales=scales, max_grad_norm=max_grad_norm,
            stochastic_rounding=stochastic_rounding, seed=seed, workspace=workspace, neuron_factors=neuron_factors,
            **scaling, **hyper,
        )  # fmt: skip
