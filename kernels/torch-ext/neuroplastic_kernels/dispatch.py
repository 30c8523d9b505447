"""The public operations, and the one place that picks the form that runs.

An operation has a `reference` form (plain PyTorch, any device) and may have a `fused` form (Triton) of the same signature.
`backend="auto"` takes the fused form where it can run, "reference" and "fused" take that form or raise. `compile=True` takes
the native form instead (C++, CPU tensors), which the system's compiler builds on first use; `compile=None` does where it can.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ffn_activation.reference import ffn_activation as ffn_activation_reference
from .neuron_reinit.neurons import NeuronTensors
from .neuron_reinit.reference import neuron_reinit as neuron_reinit_reference
from .plasticity_step.formulas import NeuronFactor
from .plasticity_step.lists import check_lists
from .plasticity_step.native import load_plasticity_step
from .plasticity_step.options import gradient_squares as gradient_squares_reference
from .plasticity_step.options import plasticity_step as plasticity_step_reference
from .synaptic_scale.reference import synaptic_scale as synaptic_scale_reference

ffn_activation_fused: Callable[..., Any] | None = None
gradient_squares_fused: Callable[..., Any] | None = None
neuron_reinit_fused: Callable[..., Any] | None = None
plasticity_step_fused: Callable[..., Any] | None = None
synaptic_scale_fused: Callable[..., Any] | None = None
try:
    import triton  # noqa: F401

    TRITON_INSTALLED = True
except ImportError:
    TRITON_INSTALLED = False
if TRITON_INSTALLED:
    from .ffn_activation.fused import ffn_activation as ffn_activation_fused
    from .neuron_reinit.fused import neuron_reinit as neuron_reinit_fused
    from .plasticity_step.fused import plasticity_step as plasticity_step_fused
    from .plasticity_step.fused_gradient_squares import gradient_squares as gradient_squares_fused
    from .synaptic_scale.fused import synaptic_scale as synaptic_scale_fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton where a kernel is defined, that is, just now
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("auto", "reference", "fused")


class Forms(NamedTuple):
    """The forms of one operation.

    `obstacle` says why the fused form cannot take these tensors, or returns None; `load_native` builds the native form.
    """

    reference: Callable[..., Any]
    fused: Callable[..., Any] | None = None
    obstacle: Callable[[Sequence[Tensor]], str | None] = lambda tensors: None
    load_native: Callable[[], Callable[..., Any]] | None = None


@cache
def say_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def triton_obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Why Triton kernels cannot take these tensors, or None."""
    if not TRITON_INSTALLED:
        return "Triton is not installed (pip install triton)"
    for tensor in tensors:
        if not (tensor.is_cuda or INTERPRETED):
            return (
                f"Triton kernels need CUDA tensors, got one on {tensor.device}; "
                f"set TRITON_INTERPRET=1 before Python starts to interpret them on the CPU"
            )
        if tensor.dtype not in FUSED_DTYPES:
            return f"Triton kernels take {', '.join(map(str, FUSED_DTYPES))}, got {tensor.dtype}"
    return None


FORMS = {
    "plasticity_step": Forms(plasticity_step_reference, plasticity_step_fused, triton_obstacle, load_plasticity_step),
    "gradient_squares": Forms(gradient_squares_reference, gradient_squares_fused, triton_obstacle),
    "ffn_activation": Forms(ffn_activation_reference, ffn_activation_fused, triton_obstacle),
    "neuron_reinit": Forms(neuron_reinit_reference, neuron_reinit_fused, triton_obstacle),
    "synaptic_scale": Forms(synaptic_scale_reference, synaptic_scale_fused, triton_obstacle),
}


def native_form(operation: str, backend: str, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The native form of `operation`. Raises RuntimeError where it cannot run, ValueError for a backend that forbids it."""
    load = FORMS[operation].load_native
    if load is None:
        raise ValueError(f"{operation} has no native form: leave compile=False")
    if backend == "fused":
        raise ValueError("compile=True and backend='fused' name two forms: leave compile=False, or backend='auto'")
    for tensor in tensors:
        if not tensor.is_cpu:
            raise RuntimeError(
                f"compile=True is for CPU tensors, got one on {tensor.device}; leave compile=False: on CUDA devices the "
                "fused form needs no compiling"
            )
    return load()


@cache
def native_form_if_it_builds(operation: str) -> Callable[..., Any] | None:
    """The native form of `operation`, or None where there is no such form or no working compiler, which is said once."""
    load = FORMS[operation].load_native
    try:
        return load() if load else None
    except RuntimeError as error:
        say_once(f"{operation} runs on the slower PyTorch form, since its native form could not be built: {error}")
        return None


def select(
    operation: str, backend: str, tensors: Sequence[Tensor] = (), *, compile: bool | None = False
) -> Callable[..., Any]:
    """The form of `operation` that `backend` and `compile` name, for arguments like `tensors`.

    `compile=True` is the native form or an error; None takes it with backend="auto" for CPU tensors, where it can be built.

    Raises ValueError for an unknown backend or one that `compile` contradicts, and RuntimeError where "fused" or `compile`
    is asked for and cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if compile:
        return native_form(operation, backend, tensors)
    forms = FORMS[operation]
    if backend == "reference":
        return forms.reference
    obstacle = forms.obstacle(tensors)
    if not TRITON_INSTALLED and any(tensor.is_cuda for tensor in tensors):
        say_once("Triton is not installed (pip install triton): everything runs, on the slower reference forms")
    if forms.fused is None:
        obstacle = obstacle or f"{operation} has no fused form in this version"
    if backend == "fused" and obstacle:
        raise RuntimeError(f"backend='fused' cannot run: {obstacle}; use backend='auto' or 'reference'")
    interpreted = any(not tensor.is_cuda for tensor in tensors)  # works, but slowly: only on demand
    if backend == "auto" and compile is None and tensors and all(tensor.is_cpu for tensor in tensors):
        return native_form_if_it_builds(operation) or forms.reference
    if obstacle or forms.fused is None or (backend == "auto" and interpreted):
        return forms.reference
    return forms.fused


def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    traces: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    backend: str = "auto",
    compile: bool | None = None,
    workspace: dict[Any, Any] | None = None,
    neuron_factors: Sequence[NeuronFactor | None] | None = None,
    **hyper: Any,
) -> None:
    """One NeuroPlastic step of every tensor, in place; see `plasticity_step.options` for the arguments.

    The first tensor decides the form; the fused form itself sends tensors it cannot take to the reference.
    """
    form = select("plasticity_step", backend, params if compile else params[:1], compile=compile)
    if form is plasticity_step_reference:  # the others check where they make their tables
        check_lists(params, grads, (traces, exp_avgs, exp_avg_sqs), steps, neuron_factors)
    hyper |= {"workspace": workspace, "neuron_factors": neuron_factors}
    form(params, grads, traces, exp_avgs, exp_avg_sqs, steps, **hyper)


def gradient_squares(
    grads: Sequence[Tensor | None], *, backend: str = "auto", workspace: dict[Any, Any] | None = None
) -> Tensor:
    """The sum of the squares of all gradients, for `plasticity_step`; see `plasticity_step.options`."""
    present = [grad for grad in grads if grad is not None]
    fusible = next(
        (grad for grad in present if grad.dtype in FUSED_DTYPES), None
    )  # the fused form sorts out the others
    deciding = present[:1] if fusible is None else [fusible]
    return select("gradient_squares", backend, deciding)(present, workspace=workspace)


def ffn_activation(
    h: Tensor, bias: Tensor | None, neuron_sums: Tensor | None = None, *, backend: str = "auto", **options: Any
) -> Tensor:
    """dropout(act(h + bias)), the neuron sums taken in its backward; see `ffn_activation.reference`."""
    return select("ffn_activation", backend, [h])(h, bias, neuron_sums, **options)


def neuron_reinit(sites: Sequence[NeuronTensors], *, backend: str = "auto", **options: Any) -> None:
    """New weights and initial optimizer state for the masked neurons of all sites; see `neuron_reinit.reference`."""
    written = [tensor for site in sites for tensor in site.written()]
    select("neuron_reinit", backend, written)(sites, **options)


def synaptic_scale(incoming: Sequence[Tensor], *statistics: Any, backend: str = "auto", **options: Any) -> None:
    """One step of synaptic scaling for every site, in place; see `synaptic_scale.reference`."""
    select("synaptic_scale", backend, incoming)(incoming, *statistics, **options)
