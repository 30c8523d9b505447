"""One step of the NeuroPlastic optimizer in Triton: one pass over memory for all tensors of a kind.

`fused_kernels` says what is launched, and how many bytes that moves. Nothing waits for the device, and nothing is allocated
while the tensors stay where they are; gradients may move. After one step outside, a step can be captured in a CUDA graph.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from .fused_formulas import Average, Rule
from .fused_kernels import join_kernel, step_kernel
from .lists import Lists, State, begin, leave_others
from .passes import Shard, is_plastic, measures, passes
from .reference import Hyperparameters, NeuronFactor
from .tables import DTYPES, Table, geometry, is_taken, table


def prepare(skips: bool, rounds: bool, capturing: bool, lists: Lists) -> tuple[list[Table], list[int]]:
    """The tables of the tensors that kernels take, one per device, and the places of the others. lists: of `begin`."""
    members, others = dict[torch.device, list[int]](), list[int]()
    for number, param in enumerate(lists.params):
        (members.setdefault(param.device, []) if is_taken(lists, number, skips, rounds) else others).append(number)
    return [table(each, lists, capturing) for each in members.values()], others


def average(keep: float) -> Average:
    return Average(float(keep), 1.0 - keep, math.log(keep) if keep else -math.inf)


def kernel_rule(hyper: Hyperparameters, device: torch.device, **scalars: Tensor | None) -> Rule:
    """The options as kernel arguments. scalars: gradient_factor and found_inf."""
    scalars["lr_tensor"] = hyper.lr if isinstance(hyper.lr, Tensor) and not hyper.lr.is_cpu else None
    placed = {name: None if each is None else each.to(device, torch.float32) for name, each in scalars.items()}
    decay = float(hyper.weight_decay)
    return Rule(
        base=tl.constexpr(hyper.base),
        plastic=tl.constexpr(is_plastic(hyper)),
        exact=tl.constexpr(measures(hyper)),
        skips=tl.constexpr(hyper.skip_nonfinite),
        lr=float(hyper.lr) if scalars["lr_tensor"] is None else 0.0,
        sign=-1.0 if hyper.maximize else 1.0,
        of_m=average(hyper.betas[0]),
        of_v=average(hyper.betas[1]),
        of_a=average(hyper.trace_decay),
        eps=float(hyper.eps),
        weights=tuple(map(float, hyper.signal_weights)),
        lower=float(hyper.alpha_range[0]),
        upper=float(hyper.alpha_range[1]),
        scale=float(hyper.plasticity_scale),
        strength=float(hyper.strength),
        warmup=float(hyper.warmup_steps) if hyper.warmup_steps else None,
        coupled=decay if decay and not hyper.decoupled_weight_decay else None,
        decoupled=decay if decay and hyper.decoupled_weight_decay else None,
        max_update_norm=None if hyper.max_update_norm is None else float(hyper.max_update_norm),
        homeostatic_rate=float(hyper.homeostatic_rate) if hyper.homeostatic_rate else None,
        target_rms=float(hyper.target_rms),
        **placed,
    )


def launch(table: Table, gradients: Tensor, rule: Rule, mode: str, seed: int, stochastic_rounding: bool) -> None:
    """All launches of one pass on one device. gradients: int64 [tensors], their addresses."""
    shape, tensors = geometry(), len(table.members)
    for kind, start, chunks in table.buckets:
        rounds = stochastic_rounding and kind.param == torch.bfloat16 and mode == "apply"
        if chunks:
            step_kernel[(chunks,)](
                table.fields, gradients, table.owners, table.partials, start, seed, rule, mode, rounds,
                DTYPES[kind.param], DTYPES[kind.grad], *kind[2:], shape.chunk, shape.block, num_warps=shape.warps,
            )  # fmt: skip
    join_kernel[(tensors,)](table.fields, gradients, table.partials, rule, mode)


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
    """Steps every tensor that has a gradient once, in place.

    Arguments, errors and results, but for the order of sums, are those of `reference.plasticity_passes`. `workspace` holds the
    tables and must live as long as the CUDA graphs that read them: one dict for each list of tensors. Tensors that the kernels
    do not take (float64, not contiguous, with a step counter on another device, with such a gradient; columns of a tensor that
    needs random numbers) go to the reference.
    """
    options = Hyperparameters(**hyper)
    kinds, seed = (
        (options.skip_nonfinite, options.stochastic_rounding),
        (options.seed + 2**63) % 2**64 - 2**63,
    )  # signed
    workspace = {} if workspace is None else workspace
    capturing = any(param.is_cuda for param in params) and torch.cuda.is_current_stream_capturing()
    lists, make = Lists(params, grads, states, neuron_factors, shards), partial(prepare, *kinds, capturing)
    step = begin(workspace, lists, ("fused", *kinds), make, keep=not capturing)
    left = leave_others(step, lists, gradient_factor=gradient_factor, found_inf=found_inf, **hyper)
    launches = []
    for each in step.prepared.tables:
        device = each.fields.device
        rule = kernel_rule(options, device, gradient_factor=gradient_factor, found_inf=found_inf)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            gradients = each.gradients(step.addresses, capturing)
        if capturing:
            workspace.setdefault("captured", []).append((each, gradients))  # the graph reads them again
        launches.append((device, partial(launch, each, gradients, rule)))
    for name in passes(options):
        for device, run in launches:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                run(name, seed, options.stochastic_rounding)
        if name == "apply":
            increment_version(step.stepped)  # kernels write behind torch's back
        next(left, None)
        yield name
