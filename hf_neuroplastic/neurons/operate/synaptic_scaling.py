"""Synaptic scaling: scales every neuron's incoming weights, step by step, until the neuron's activity is at the target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from neuroplastic_kernels import neuron_sums, synaptic_scale

from ..config import DropInConfig
from ..observe.statistics import NeuronStatistics, WatchedSite
from ..sites import Site


def scale_synapses(
    watched: Sequence[WatchedSite],
    all_neurons: NeuronStatistics,
    config: DropInConfig,
    *,
    workspace: dict[Any, Any] | None = None,
) -> None:
    """One step of synaptic scaling of all sites that learn, in place, by `config`.

    Args:
        all_neurons: the statistics of all sites side by side.
        workspace: a dict to keep between calls, in which the fused form holds what need not be prepared anew.
    """
    starts = accumulate((known.site.width for known in watched), initial=0)
    pairs = zip(watched, starts, strict=False)
    trained = [(known.site.up.weight.detach(), start) for known, start in pairs if known.learns]
    synaptic_scale(
        [weight for weight, _ in trained],
        [start for _, start in trained],
        all_neurons.scale,
        all_neurons.averages[neuron_sums.ABS_OUTPUT],
        all_neurons.weight,
        all_neurons.active,
        rate=config.synaptic_lr,
        target=config.homeostatic_target,
        scale_range=config.scale_range,
        workspace=workspace,
        backend=config.backend,
    )


def refuse_half_precision(sites: Iterable[Site]) -> None:
    """Raises TypeError for weights too coarse to take small steps."""
    for site in sites:
        if site.up.weight.dtype.itemsize < 4:
            raise TypeError(
                f"synaptic_lr must be 0 for weights of {site.up.weight.dtype}: their resolution is too coarse for small steps; "
                f"keep the weights in float32 and compute under autocast (Trainer's bf16=True does)"
            )
