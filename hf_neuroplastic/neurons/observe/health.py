"""How the neurons of a model fare, in a few numbers for a log."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .statistics import NeuronStatistics

DEAD, WEAK = 0.025, 0.1


def neuron_health(everyone: NeuronStatistics, sites: Sequence[NeuronStatistics]) -> dict[str, float]:
    """Plain floats over all sites, read back from the device: ask only when a log is due.

    neuro/dead_fraction: share of active, observed neurons whose activity is at most 2.5 % of their site's mean (the tau of
    .025 in ReDo, arXiv 2302.12902). neuro/weak_fraction: share whose contribution is at most 10 % of their site's mean.
    neuro/mean_age: in steps. neuro/activity: mean |z|. neuro/scale_min, neuro/scale_max: extremes of the synaptic scaling
    factors.

    Args:
        everyone: the statistics of all neurons; `sites` are its parts, one per site.
    """
    active = everyone.active
    counted = active & (everyone.weight > 0)
    total = max(int(counted.sum()), 1)
    scale = everyone.scale[active] if bool(active.any()) else torch.ones(1)
    return {
        "neuro/dead_fraction": _count_low(sites, [site.activity for site in sites], DEAD) / total,
        "neuro/weak_fraction": _count_low(sites, [site.contribution for site in sites], WEAK) / total,
        "neuro/mean_age": float(everyone.age[active].double().mean().nan_to_num()),
        "neuro/activity": float(everyone.activity[counted].sum()) / total,
        "neuro/scale_min": float(scale.min()),
        "neuro/scale_max": float(scale.max()),
    }


def _count_low(sites: Sequence[NeuronStatistics], values: Sequence[Tensor], fraction: float) -> int:
    """Active, observed neurons whose value is at most `fraction` of their site's mean."""
    count = 0
    for site, value in zip(sites, values, strict=True):
        held = value[site.active & (site.weight > 0)]
        count += int((held <= fraction * held.mean()).sum())
    return count
