"""How useful a neuron is: pure functions of statistics and weights to a score per neuron, low meaning useless."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuroplastic_kernels import uniform

from ..observe.statistics import NeuronStatistics
from ..sites import Site, per_neuron

RANDOM_CRITERION = 2  # word of the random counter: keeps these draws apart from those of the new weights


def contribution(site: Site, statistics: NeuronStatistics) -> Tensor:
    """mean|z| * mean|dz| (DropIn)."""
    return statistics.contribution


def dormant(site: Site, statistics: NeuronStatistics) -> Tensor:
    """mean|z| (ReDo, arXiv 2302.12902, eq. 1 before its division by the layer's mean)."""
    return statistics.activity


def gradient(site: Site, statistics: NeuronStatistics) -> Tensor:
    """mean|dz| (GraMa, arXiv 2505.24061)."""
    return statistics.gradient


def utility(site: Site, statistics: NeuronStatistics) -> Tensor:
    """mean|z| * sum of |outgoing weights| (continual backprop, Dohare et al., Nature 2024)."""
    return statistics.activity * sum(per_neuron(site.outgoing, lambda weights: weights.float().abs()))


CRITERIA: dict[str, Callable[[Site, NeuronStatistics], Tensor]] = {
    "contribution": contribution,
    "dormant": dormant,
    "gradient": gradient,
    "utility": utility,
}


def score(
    criterion: str,
    site: Site,
    statistics: NeuronStatistics,
    *,
    relative: bool,
    seed: int = 0,
    event: int = 0,
    site_index: int = 0,
) -> Tensor:
    """[N] float32 scores of a site's neurons, divided by the mean over its active, observed neurons if `relative`.

    "random" draws uniform numbers from (seed, event, site_index, neuron), the same on every rank.
    """
    if criterion == "random":
        neurons = torch.arange(site.width, device=statistics.age.device)
        scores = uniform(seed, neurons, event, site_index, RANDOM_CRITERION)
    else:
        scores = CRITERIA[criterion](site, statistics)
    if not relative:
        return scores
    counted = statistics.active & (statistics.weight > 0)
    mean = torch.where(counted, scores, 0.0).sum() / counted.sum().clamp_min(1)
    # A layer that is dead as a whole has mean 0: its scores are 0. NaN stays NaN, which no decision chooses.
    return torch.where(mean == 0, 0.0, scores / mean)
