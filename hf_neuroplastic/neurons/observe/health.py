"""How the neurons of a model fare, in a few numbers for a log."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .statistics import NeuronStatistics, WatchedSite

DEAD, WEAK = 0.025, 0.1


def neuron_health(all_neurons: NeuronStatistics, watched: Sequence[WatchedSite]) -> dict[str, float]:
    """Plain floats over all sites, read back from the device: ask only when a log is due.

    neuro/replaced_total: neurons replaced so far. neuro/replaced_again: share of these that DropIn had made itself and that
    went at the first event at which they were old enough: where it is high, new neurons do not earn their place.
    neuro/dead_fraction: share of active, observed neurons whose activity is at most 2.5 % of their site's mean (the tau of
    .025 in ReDo, arXiv 2302.12902). neuro/weak_fraction: share whose contribution is at most 10 % of their site's mean.
    neuro/mean_age: in steps. neuro/activity: mean |z|. neuro/scale_min, neuro/scale_max: extremes of the synaptic scaling
    factors.

    all_neurons: the statistics of all sites' neurons.
    """
    active = all_neurons.active
    counted = active & (all_neurons.weight > 0)
    total = max(int(counted.sum()), 1)
    scale = all_neurons.scale[active] if bool(active.any()) else torch.ones(1)
    parts = [known.statistics for known in watched]
    replaced, again = (
        int(sum(counts)) for counts in zip(*((k.replaced, k.replaced_again) for k in watched), strict=True)
    )
    return {
        "neuro/replaced_total": float(replaced),
        "neuro/replaced_again": again / max(replaced, 1),
        "neuro/dead_fraction": sum(_count_low(part, part.activity, DEAD) for part in parts) / total,
        "neuro/weak_fraction": sum(_count_low(part, part.contribution, WEAK) for part in parts) / total,
        "neuro/mean_age": float(all_neurons.age[active].double().mean().nan_to_num()),
        "neuro/activity": float(all_neurons.activity[counted].sum()) / total,
        "neuro/scale_min": float(scale.min()),
        "neuro/scale_max": float(scale.max()),
    }


def _count_low(statistics: NeuronStatistics, values: Tensor, fraction: float) -> int:
    """Active, observed neurons of one site whose value [N] is at most `fraction` of the site's mean."""
    held = values[statistics.active & (statistics.weight > 0)]
    return int((held <= fraction * held.mean()).sum())
