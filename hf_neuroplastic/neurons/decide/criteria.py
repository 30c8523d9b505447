"""How useful a neuron is: pure functions of statistics and weights to a score per neuron, low meaning useless."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from neuroplastic_kernels import uniform

from ..config import DropInConfig
from ..observe.statistics import NeuronStatistics, WatchedSite
from ..sites import per_neuron

RANDOM_CRITERION = 2  # word of the random counter: keeps these draws apart from those of the new weights
Watched = Sequence[WatchedSite]


def contribution(watched: Watched) -> list[Tensor]:
    """mean|z| * mean|dz| (DropIn)."""
    return [known.statistics.contribution for known in watched]


def dormant(watched: Watched) -> list[Tensor]:
    """mean|z| (ReDo, arXiv 2302.12902, eq. 1 before its division by the layer's mean)."""
    return [known.statistics.activity for known in watched]


def gradient(watched: Watched) -> list[Tensor]:
    """mean|dz| (GraMa, arXiv 2505.24061)."""
    return [known.statistics.gradient for known in watched]


def utility(watched: Watched) -> list[Tensor]:
    """mean|z| * sum of |outgoing weights| (continual backprop, Dohare et al., Nature 2024)."""
    outgoing = [part for known in watched for part in known.site.outgoing]
    heard: Iterator[Tensor] = iter(per_neuron(outgoing, lambda weights: weights.float().abs()))
    return [known.statistics.activity * sum(next(heard) for _ in known.site.outgoing) for known in watched]


CRITERIA: dict[str, Callable[[Watched], list[Tensor]]] = {
    "contribution": contribution,
    "dormant": dormant,
    "gradient": gradient,
    "utility": utility,
}


def score_sites(watched: Watched, config: DropInConfig, event: int) -> list[Tensor]:
    """Per site [N] float32: the usefulness of each neuron by the configured criterion.

    "random" draws uniform numbers from (seed, event, place of the site, neuron), the same on every rank.
    """
    if config.criterion == "random":
        neurons = [torch.arange(known.site.width, device=known.statistics.age.device) for known in watched]
        scores = [uniform(config.seed, each, event, site, RANDOM_CRITERION) for site, each in enumerate(neurons)]
    else:
        scores = CRITERIA[config.criterion](watched)
    if not config.relative:
        return scores
    return [_relative(score, known.statistics) for score, known in zip(scores, watched, strict=True)]


def _relative(scores: Tensor, statistics: NeuronStatistics) -> Tensor:
    """[N] scores, divided by the mean over the active, observed neurons."""
    counted = statistics.active & (statistics.weight > 0)
    mean = torch.where(counted, scores, 0.0).sum() / counted.sum().clamp_min(1)
    # A layer that is dead as a whole has mean 0: its scores are 0. NaN stays NaN, which no decision chooses.
    return torch.where(mean == 0, 0.0, scores / mean)
