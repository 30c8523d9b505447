"""The public operations, and the one place that picks the form that runs.

An operation has a `reference` form (plain PyTorch, any device) and may have a `fused` form (Triton) of the same signature.
`backend="auto"` takes the fused form where it can run, "reference" and "fused" take that form or raise.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .neurons import NeuronTensors
from .reference.ffn_activation import ffn_activation as ffn_activation_reference
from .reference.neuron_reinit import neuron_reinit as neuron_reinit_reference
from .reference.plasticity_step import plasticity_step as plasticity_step_reference
from .reference.synaptic_scale import synaptic_scale as synaptic_scale_reference

BACKENDS = ("auto", "reference", "fused")


class Forms(NamedTuple):
    """The forms of one operation. `obstacle` says why the fused form cannot take these tensors, or returns None."""

    reference: Callable[..., Any]
    fused: Callable[..., Any] | None = None
    obstacle: Callable[[Sequence[Tensor]], str | None] = lambda tensors: None


FORMS = {
    "plasticity_step": Forms(plasticity_step_reference),
    "ffn_activation": Forms(ffn_activation_reference),
    "neuron_reinit": Forms(neuron_reinit_reference),
    "synaptic_scale": Forms(synaptic_scale_reference),
}


def select(operation: str, backend: str, tensors: Sequence[Tensor] = ()) -> Callable[..., Any]:
    """The form of `operation` that `backend` names, for arguments like `tensors`.

    Raises ValueError for an unknown backend and RuntimeError where "fused" is asked for and cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    forms = FORMS[operation]
    if forms.fused is None:
        obstacle: str | None = f"{operation} has no fused form in this version"
    else:
        obstacle = forms.obstacle(tensors)
    if backend == "fused" and obstacle:
        raise RuntimeError(f"backend='fused' cannot run: {obstacle}; use backend='auto' or 'reference'")
    if backend == "reference" or obstacle or forms.fused is None:
        return forms.reference
    return forms.fused


def plasticity_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    traces: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    backend: str = "auto",
    compile: bool = False,
    workspace: dict[Any, Any] | None = None,
    **hyper: Any,
) -> None:
    """One NeuroPlastic step of every tensor, in place; see `reference.plasticity_step` for the arguments."""
    form = select("plasticity_step", backend, params)
    form(params, grads, traces, exp_avgs, exp_avg_sqs, steps, compile=compile, workspace=workspace, **hyper)


def ffn_activation(
    h: Tensor, bias: Tensor | None, moments: Tensor | None = None, *, backend: str = "auto", **options: Any
) -> Tensor:
    """dropout(act(h + bias)), the neurons' moments taken in its backward; see `reference.ffn_activation`."""
    return select("ffn_activation", backend, [h])(h, bias, moments, **options)


def neuron_reinit(sites: Sequence[NeuronTensors], *, backend: str = "auto", **options: Any) -> None:
    """New weights and initial optimizer state for the masked neurons of all sites; see `reference.neuron_reinit`."""
    select("neuron_reinit", backend, [site.up_weight for site in sites])(sites, **options)


def synaptic_scale(
    up_weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    errors: Sequence[Tensor],
    *,
    backend: str = "auto",
    **options: Any,
) -> None:
    """One step of synaptic scaling for every site, in place; see `reference.synaptic_scale`."""
    select("synaptic_scale", backend, up_weights)(up_weights, scales, errors, **options)
