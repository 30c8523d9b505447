"""Growth between runs: adds new neurons at once; DropIn's schedules add neurons while a model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neuroplastic_kernels import neuron_sums

from ..config import DropInConfig
from ..decide.criteria import score_sites
from ..decide.decisions import Action, Decision
from ..observe.statistics import NeuronStatistics, watched_sites
from ..sites import inert_slots, require_abilities, select_sites
from .optimizers import Optimizers
from .resize import reserve
from .surgery import apply_decisions


@torch.no_grad()
def grow(
    model: nn.Module,
    count: int | float,
    *,
    layers: int | str | Sequence[int | str] | None = None,
    init: str = "layer",
    seed: int = 0,
    optimizer: Any = None,
) -> None:
    """Adds neurons to the feed-forward layers of `model`, in place: `reserve`, and the new slots activated.

    The model's output stays as it is: new neurons have zero outgoing weights, or share those of the neuron they split.

    Args:
        count, layers, optimizer: as in `reserve`. Where one configured width holds for all layers, those not in `layers` get
            their slots in reserve.
        init: incoming weights as in DropInConfig; "split" halves the neurons of the largest outgoing weights, one each.
        seed: of the counter-based random numbers.

    Raises:
        ValueError: as `reserve`; an unknown init; a layer that cannot be split, or has fewer neurons than are to be split.
        RuntimeError, TypeError: as `reserve`. In every case the model is unchanged.
    """
    config = DropInConfig(layers=layers, init=init, criterion="utility", threshold=0.0, seed=seed)
    sites = select_sites(model, layers)
    require_abilities(sites, config)
    before = [site.width for site in sites]
    reserve(model, _splittable(sites, count) if init == "split" else count, layers=layers, optimizer=optimizer)
    all_neurons = NeuronStatistics.unknown(sum(site.width for site in sites), sites[0].weights[0].device)
    all_neurons.weight.fill_(1.0)
    all_neurons.averages[neuron_sums.ABS_OUTPUT] = (
        1.0  # nothing was observed: all are equally active, outgoing weights decide
    )
    watched = watched_sites(sites, all_neurons, before)
    added = [
        Decision(Action.GROW, torch.arange(site.width, device=all_neurons.weight.device) >= width)
        for site, width in zip(sites, before, strict=True)
    ]
    scores = score_sites(watched, config, 0)
    apply_decisions(watched, added, scores, config=config, optimizers=Optimizers(optimizer), event=0)


def _splittable(sites: Sequence[Any], count: Any) -> Any:
    """`count`, unless a site has too few neurons to split for it; `reserve` checks the rest."""
    for site in sites:
        active = site.width - int(inert_slots(site).sum())
        wanted = count * site.width if isinstance(count, float) else count
        if isinstance(wanted, (int, float)) and wanted > active:
            raise ValueError(
                f"count={count!r} asks for more neurons in {site.name!r} than the {active} it could split; grow by at most "
                f'so many, or by another init than "split"'
            )
    return count
