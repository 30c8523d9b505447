"""Widths and weights that belong together: of a run that is resumed, and after other weights were put into the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..observe.statistics import WatchedSite
from ..sites import Site, all_inert_slots
from .resize import reserve


def fit_widths(model: nn.Module, sites: Sequence[Site], widths: Sequence[int]) -> None:
    """Adds slots in reserve to `model` until its `sites` have the `widths` of the run that is to be resumed.

    The model may be the one that run started with, or one loaded from its checkpoint, to which nothing is added.

    Raises:
        ValueError: a site that is wider already; the model is unchanged then.
    """
    missing = [width - site.width for site, width in zip(sites, widths, strict=True)]
    for site, width in zip(sites, widths, strict=True):
        if site.width > width:
            raise ValueError(
                f"site {site.name!r} has {site.width} neurons, but the run to be resumed had {width}; load the model from "
                f"the checkpoint, or from what the run started with"
            )
    for count in sorted(set(missing) - {0}):
        reserve(model, count, layers=[site.name for site, short in zip(sites, missing, strict=True) if short == count])


def refuse_other_widths(model: nn.Module, sites: Sequence[Site]) -> RemovableHandle:
    """From now on `model.load_state_dict` of weights with other widths raises a ValueError that says what to do.

    Trainer loads a checkpoint by it when it resumes. The returned handle's `remove()` ends it.
    """
    return model.register_load_state_dict_pre_hook(partial(_check_widths, sites))


def reconcile(watched: Sequence[WatchedSite], *, to_sleep: bool = True) -> None:
    """Brings the activity of neurons to what the weights say: a slot whose parameters are all 0 is in reserve, others active.

    A rollback, the best checkpoint or an EMA copy may have put other weights there. What was known of a neuron that woke up is
    forgotten. to_sleep: False leaves active what is 0, as where the weights of a state are loaded only after the state.
    """
    able = [known for known in watched if known.site.refusal("be silenced") is None]
    for known, inert in zip(able, all_inert_slots([known.site for known in able]), strict=True):
        live, statistics = ~inert, known.statistics
        statistics.begin_anew(live & ~statistics.active)
        statistics.active.copy_(live if to_sleep else live | statistics.active)


def reconcile_after_load(model: nn.Module, watched: Sequence[WatchedSite]) -> RemovableHandle:
    """From now on `model.load_state_dict` ends with `reconcile`. The returned handle's `remove()` ends it."""
    return model.register_load_state_dict_post_hook(partial(_reconcile, watched))


@torch.no_grad()
def _reconcile(watched: Sequence[WatchedSite], *_: Any) -> None:
    reconcile(watched)


def _check_widths(sites: Sequence[Site], module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    names = {id(parameter): prefix + name for name, parameter in module.named_parameters()}
    for site in sites:
        weight = site.incoming[0].weight
        saved = state_dict.get(names.get(id(weight.tensor), ""))
        neurons = site.width if saved is None else saved.shape[weight.dim] // weight.blocks
        if neurons != site.width:
            raise ValueError(
                f"site {site.name!r} has {site.width} neurons, but the weights to be loaded have {neurons}: to go on with "
                f"a run that grew, pass DropInCallback(config, resume_from=checkpoint), or make the DropIn by "
                f"resume_dropin(model, checkpoint)"
            )


HOOKS = (_check_widths, _reconcile)
