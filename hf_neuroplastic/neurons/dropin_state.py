"""The state of a DropIn, checked as a whole before any of it is taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .observe.statistics import NeuronStatistics
from .sites import Site

COUNTS = ("replaced", "replaced_again")


class DropInState(NamedTuple):
    """What a `DropIn.state_dict` says; lists have one entry per site."""

    step_count: int
    events: int
    start_widths: list[int]
    widths: list[int]
    replaced: list[Tensor]  # 0-dim, as the next
    replaced_again: list[Tensor]
    all_neurons: NeuronStatistics  # of all sites side by side


def checked_state(state: Mapping[str, Any], sites: Sequence[Site]) -> DropInState:
    """The content of `state`, which must be of these sites; its widths may be others than theirs are now.

    Raises:
        TypeError: something else than a dict.
        ValueError: counts that are none, other sites, or statistics that are incomplete.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be what DropIn.state_dict() gave, got {type(state).__name__}")
    for name in ("step_count", "events"):
        count = state.get(name)
        if type(count) is not int or count < 0:
            raise ValueError(f"state[{name!r}] must be an int of at least 0, got {count!r}")
    own, given = [site.name for site in sites], list(state.get("sites") or ())
    if own != given:
        raise ValueError(f"the state is of the sites {given}, but this DropIn watches {own}; use the same layers")
    start_widths = state.get("start_widths")
    if (
        not isinstance(start_widths, list)
        or len(start_widths) != len(own)
        or any(type(n) is not int or n < 0 for n in start_widths)
    ):
        raise ValueError(
            f"state['start_widths'] must be {len(own)} ints of at least 0, one per site, got {start_widths!r}"
        )
    groups = [dict(state["sites"][name]) for name in own]
    replaced, again = (
        [_popped_count(name, group, key) for name, group in zip(own, groups, strict=True)] for key in COUNTS
    )
    widths = [group["age"].numel() if "age" in group else 0 for group in groups]
    all_neurons = NeuronStatistics.unknown(sum(widths))
    for name, known, group in zip(own, all_neurons.split(widths), groups, strict=True):
        try:
            known.load_state_dict(group)
        except ValueError as error:
            raise ValueError(f"site {name!r}: {error}") from None
    return DropInState(state["step_count"], state["events"], list(start_widths), widths, replaced, again, all_neurons)


def _popped_count(site: str, group: dict[str, Any], name: str) -> Tensor:
    count = group.pop(name, torch.zeros((), dtype=torch.int64)).clone()
    if count.dtype != torch.int64 or count.ndim or count < 0:
        raise ValueError(f"site {site!r}: {name} must be one int64 of at least 0, got {count}")
    return count


def require_same_widths(state: DropInState, sites: Sequence[Site]) -> None:
    """Raises ValueError unless every site has as many neurons as the state says."""
    for site, width in zip(sites, state.widths, strict=True):
        if site.width != width:
            raise ValueError(
                f"site {site.name!r} has {site.width} neurons, but the state is of {width}; give it to the DropIn when it is "
                f"made, as DropIn(model, config, state=...), which then brings the model to the widths of the state"
            )
