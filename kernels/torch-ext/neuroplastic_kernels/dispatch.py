"""The public operations, and the one place that picks the form that runs.

An operation has a `reference` form (plain PyTorch, any device) and may have a `fused` form (Triton) and a `native` form (C++,
built by the system's compiler on first use) of the same signature. `backend` names one of them, or "auto": fused on CUDA
devices, native on the CPU, the reference where neither can run.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .common.shards import is_sharded
from .ffn_activation.reference import ffn_activation as ffn_activation_reference
from .neuron_reinit.neurons import NeuronTensors
from .neuron_reinit.reference import neuron_reinit as neuron_reinit_reference
from .plasticity_step import sharded
from .plasticity_step.native import load_plasticity_passes
from .plasticity_step.reference import plasticity_passes as plasticity_step_reference
from .synaptic_scale.reference import synaptic_scale as synaptic_scale_reference

ffn_activation_fused: Callable[..., Any] | None = None
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
    from .plasticity_step.fused import plasticity_passes as plasticity_step_fused
    from .synaptic_scale.fused import synaptic_scale as synaptic_scale_fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton where a kernel is defined, that is, just now
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("auto", "reference", "native", "fused")


class Forms(NamedTuple):
    """The forms of one operation; `load_native` builds the native one, and raises RuntimeError where that fails.

    Those of `plasticity_step` are generators of its passes.
    """

    reference: Callable[..., Any]
    fused: Callable[..., Any] | None
    load_native: Callable[[], Callable[..., Any]] | None = None


FORMS = {
    "plasticity_step": Forms(plasticity_step_reference, plasticity_step_fused, load_plasticity_passes),
    "ffn_activation": Forms(ffn_activation_reference, ffn_activation_fused),
    "neuron_reinit": Forms(neuron_reinit_reference, neuron_reinit_fused),
    "synaptic_scale": Forms(synaptic_scale_reference, synaptic_scale_fused),
}


@cache
def say_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def fused_obstacle(tensors: Sequence[Tensor]) -> str | None:
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


@cache
def native_form_if_it_builds(operation: str) -> Callable[..., Any] | None:
    """The native form of `operation`, or None where there is no such form or no working compiler, which is said once."""
    load = FORMS[operation].load_native
    try:
        return load() if load else None
    except RuntimeError as error:
        say_once(f"{operation} runs on the slower PyTorch form, since its native form could not be built: {error}")
        return None


def select(operation: str, backend: str, tensors: Sequence[Tensor] = ()) -> Callable[..., Any]:
    """The form of `operation` that `backend` names, for arguments like `tensors`.

    Raises:
        ValueError: an unknown backend, or "native" for an operation without such a form.
        RuntimeError: "native" or "fused" where this form cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    forms = FORMS[operation]
    if backend == "reference":
        return forms.reference
    if backend == "native":
        if forms.load_native is None:
            raise ValueError(f"{operation} has no native form; use backend='auto', 'reference' or 'fused'")
        elsewhere = next((tensor.device for tensor in tensors if not tensor.is_cpu), None)
        if elsewhere is not None:
            raise RuntimeError(f"backend='native' is for CPU tensors, got one on {elsewhere}; use backend='auto'")
        return forms.load_native()
    obstacle = fused_obstacle(tensors)
    if backend == "fused" and obstacle:
        raise RuntimeError(f"backend='fused' cannot run: {obstacle}; use backend='auto' or 'reference'")
    if backend == "auto" and any(
        not tensor.is_cuda for tensor in tensors
    ):  # interpreted kernels only on demand: they are slow
        on_cpu = all(tensor.is_cpu for tensor in tensors)
        return (native_form_if_it_builds(operation) if on_cpu and forms.load_native else None) or forms.reference
    if not TRITON_INSTALLED and tensors:
        say_once("Triton is not installed (pip install triton): everything runs, on the slower reference forms")
    return forms.reference if obstacle or forms.fused is None else forms.fused


def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[dict[str, Tensor]],
    *,
    backend: str = "auto",
    workspace: dict[Any, Any] | None = None,
    **options: Any,
) -> None:
    """One NeuroPlastic step of every tensor, in place; see `plasticity_step.reference` for the arguments.

    The first tensor of a dtype that kernels take decides the form; every form sends tensors it cannot take to the reference.
    With a workspace, the sums of sharded tensors are in their states after `settle([workspace])` only.
    """
    held = {} if workspace is None else workspace
    tensors = {"params": params, "grads": grads, "states": states}
    plasticity_steps([{**tensors, "backend": backend, "workspace": held, **options}])
    if workspace is None:
        sharded.settle([held])


def plasticity_steps(lists: Sequence[dict[str, Any]]) -> None:
    """`plasticity_step` of several lists, of each the arguments, with a workspace of its own.

    What shards need to know of each other is added up for all lists together; call `settle` with the workspaces before states
    are read.
    """
    steps = []
    for each in lists:
        arguments = {name: value for name, value in each.items() if name != "backend"}
        params, backend = each["params"], each.get("backend", "auto")
        like = [next((param for param in params if param.dtype in FUSED_DTYPES), params[0])] if params else []
        steps.append((select("plasticity_step", backend, params if backend == "native" else like), arguments))
    sharded.run(steps)


def ffn_activation(
    h: Tensor, bias: Tensor | None, neuron_sums: Tensor | None = None, *, backend: str = "auto", **options: Any
) -> Tensor:
    """dropout(act(h + bias)), the neuron sums taken in its backward; see `ffn_activation.reference`."""
    return select("ffn_activation", backend, [h])(h, bias, neuron_sums, **options)


def neuron_reinit(sites: Sequence[NeuronTensors], *, backend: str = "auto", **options: Any) -> None:
    """New weights and initial optimizer state for the masked neurons of all sites; see `neuron_reinit.reference`."""
    written = [tensor for site in sites for tensor in site.written()]
    select("neuron_reinit", _for_shards(backend, written), written)(sites, **options)


def synaptic_scale(incoming: Sequence[Tensor], *statistics: Any, backend: str = "auto", **options: Any) -> None:
    """One step of synaptic scaling for every site, in place; see `synaptic_scale.reference`."""
    select("synaptic_scale", _for_shards(backend, incoming), incoming)(incoming, *statistics, **options)


def _for_shards(backend: str, tensors: Sequence[Tensor]) -> str:
    """Tensors that are split over processes go by the reference, which alone knows of logical places."""
    return "reference" if any(map(is_sharded, tensors)) else backend
