"""One step of the NeuroPlastic optimizer over lists of tensors: three launches for all tensors of a kind.

`reference.plasticity_step` in Triton; `plasticity_kernels` says what each launch does. Nothing waits for the device, the same
state and gradients give the same bits, and nothing is allocated while the tensors stay where they are; gradients may move.
After one step outside, a step can be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.plasticity_formulas import Hyperparameters
from ..reference.plasticity_options import plasticity_step as plasticity_step_reference
from ..reference.plasticity_step import is_flat
from .plasticity_formulas import Rule
from .plasticity_kernels import SUMS, apply_kernel, signals_kernel, squares_kernel, update_kernel
from .pointer_tables import Bucket, Plan, Streams

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Geometry(NamedTuple):
    """block: elements at a time, a multiple of 256; chunk: elements of one program, a multiple of block."""

    block: int
    chunk: int
    warps: int


DEVICE = Geometry(block=1024, chunk=16384, warps=4)
INTERPRETER = Geometry(block=16384, chunk=16384, warps=4)  # its time goes by operations, not by elements


@dataclass
class Prepared:
    """What stays valid from step to step: which of the tensors are fused, by which plan, and which are not."""

    key: tuple[tuple[int, ...], ...]
    plans: dict[torch.device, Plan]
    others: list[int]
    gradients: tuple[int, ...] = ()  # where they were in the last step

    def take_gradients(self, grads: Sequence[Tensor | None]) -> bool:
        """Let every plan point at these gradients; False where they do not suit a plan."""
        addresses = tuple([-1 if grad is None else grad.data_ptr() for grad in grads])
        if addresses == self.gradients and all(grad is None or grad.is_contiguous() for grad in grads):
            return True
        self.gradients = addresses
        return all(plan.take_gradients(grads) for plan in self.plans.values())


def geometry() -> Geometry:
    return INTERPRETER if triton.knobs.runtime.interpret else DEVICE


def is_fusible(tensor: Streams) -> bool:
    """Whether the kernels take a tensor: flat, on one device, of their dtypes, with a step counter they can reach."""
    floats = [tensor.param] if tensor.grad is None else [tensor.param, tensor.grad]
    states = [tensor.trace, tensor.exp_avg, tensor.exp_avg_sq]
    return (
        all(stream.dtype in DTYPES for stream in floats)
        and all(state.dtype == torch.float32 or tensor.scales is not None for state in states)
        and all(map(is_flat, floats + states))
        and all(stream.numel() == tensor.param.numel() for stream in floats + states)
        and all(stream.device == tensor.param.device for stream in (*floats, *states, tensor.step))
    )


def prepare(key: tuple[tuple[int, ...], ...], tensors: Sequence[Streams]) -> Prepared:
    """Sort the tensors by device and plan each device's."""
    fused: dict[torch.device, list[int]] = {}
    others = []
    for index, tensor in enumerate(tensors):
        if is_fusible(tensor):
            fused.setdefault(tensor.param.device, []).append(index)
        else:
            others.append(index)
    plans = {device: Plan(tensors, indices, geometry().chunk, SUMS) for device, indices in fused.items()}
    return Prepared(key, plans, others)


def kernel_rule(hyper: Hyperparameters, device: torch.device, clip: float | None, **scaling: Tensor | None) -> Rule:
    """The options as kernel arguments; complements are taken here, in double precision."""
    beta1, beta2 = hyper.betas
    coupled = hyper.weight_decay if hyper.weight_decay and not hyper.decoupled_weight_decay else None
    on_device = {name: None if value is None else value.to(device) for name, value in scaling.items()}
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


def launch(kernel: Any, plan: Plan, rule: Rule, *arguments: Any, kinds: Sequence[str], **constants: Any) -> None:
    """One launch per kind. kinds: which of a kind's properties the kernel is compiled for."""
    shape = geometry()
    for bucket in plan.buckets:
        properties = kind_constants(bucket)
        kernel[(bucket.chunks,)](
            plan.fields, plan.owners, plan.partials, plan.chunks, bucket.start, rule, *arguments,
            **{name: properties[name] for name in kinds}, **constants,
            CHUNK=shape.chunk, BLOCK=shape.block, num_warps=shape.warps,
        )  # fmt: skip


def kind_constants(bucket: Bucket) -> dict[str, Any]:
    param, grad, eight_bit, aligned = bucket.kind
    return {"PARAM": DTYPES[param], "GRAD": DTYPES[grad], "EIGHT_BIT": eight_bit, "ALIGNED": aligned}


def run(plan: Plan, rule: Rule, seed: int, stochastic_rounding: bool) -> None:
    """All launches of one step on one device."""
    every = ("PARAM", "GRAD", "EIGHT_BIT", "ALIGNED")
    if rule.max_grad_norm is not None:
        launch(squares_kernel, plan, rule, kinds=("GRAD", "ALIGNED"))
    launch(signals_kernel, plan, rule, kinds=every)
    launch(update_kernel, plan, rule, kinds=every)
    launch(apply_kernel, plan, rule, seed, kinds=every, STOCHASTIC=stochastic_rounding)


def refreshed(workspace: dict[Any, Any], lists: Sequence[Sequence[Any]], grads: Sequence[Tensor | None]) -> Prepared:
    """What was prepared for these tensors, or new, its tables pointing at these gradients.

    lists: params, traces, exp_avgs, exp_avg_sqs, steps, scales; the last may be empty. Inside a CUDA graph everything is
    new, and kept for the graph alone.
    """
    *dense, scales = lists
    addresses = [tuple(map(Tensor.data_ptr, tensors)) for tensors in dense]
    of_scales = tuple(0 if scale is None else scale.data_ptr() for scale in scales)
    key = (tuple(map(Tensor.numel, lists[0])), *addresses, of_scales)
    capturing = lists[0][0].is_cuda and torch.cuda.is_current_stream_capturing()
    held = workspace.get("prepared")
    if held is None or capturing or held.key != key or not held.take_gradients(grads):
        params, *states = dense
        columns = (params, grads, *states, scales or [None] * len(params))
        held = prepare(key, [Streams(*row) for row in zip(*columns, strict=True)])
        held.take_gradients(grads)
        if capturing:
            workspace.setdefault("captured", []).append(held)
        else:
            workspace["prepared"] = held
    return held


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
    **hyper: Any,
) -> None:
    """Step every parameter tensor that has a gradient once, in place.

    The arguments of `reference.plasticity_options.plasticity_step`, and its results but for the order of sums. `workspace`
    holds the tables: one dict for each list of tensors. Tensors the kernels do not take (float64, not contiguous, sharded,
    with a step counter on another device) go to the reference; with `max_grad_norm`, whose norm joins all tensors, then all
    of them do.
    """
    rule = Hyperparameters(**hyper)
    if not list(zip(params, grads, traces, exp_avgs, exp_avg_sqs, steps, strict=True)):
        return
    if isinstance(rule.lr, Tensor) and rule.lr.is_cpu:
        rule = rule._replace(lr=rule.lr.item())
    workspace = {} if workspace is None else workspace
    prepared = refreshed(workspace, (params, traces, exp_avgs, exp_avg_sqs, steps, scales or ()), grads)
    others = prepared.others
    if max_grad_norm is not None and len(prepared.plans) + bool(others) > 1:
        others = list(range(len(params)))
    if len(others) < len(params):
        for device, plan in prepared.plans.items():
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                numbers = kernel_rule(rule, device, max_grad_norm, grad_scale=grad_scale, found_inf=found_inf)
                run(plan, numbers, seed, stochastic_rounding)
    if others:
        theirs = [grad if index in others else None for index, grad in enumerate(grads)]
        plasticity_step_reference(
            params, theirs, traces, exp_avgs, exp_avg_sqs, steps, scales=scales, grad_scale=grad_scale, found_inf=found_inf,
            max_grad_norm=max_grad_norm, stochastic_rounding=stochastic_rounding, seed=seed, workspace=workspace, **hyper,
        )  # fmt: skip
