"""What DropIn asks of optimizers and model before a step writes anything, and what is said once of layers left alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..config import DropInConfig
from ..observe.statistics import WatchedSite
from ..sites import Site, require_operable_site
from .optimizer_state import require_resettable
from .optimizers import Optimizers, agree, checked_optimizers
from .step_factors import refuse_decay
from .synaptic_scaling import refuse_half_precision

WHY = "frozen, or held by no optimizer that DropIn.step was given; pass all optimizers as a list"
logger = logging.getLogger(__name__)


class Admission:
    """The checks before a step.

    Args:
        model: the model that holds them.
        watched: the watched sites, whose `learns` and `learns_whole` follow the optimizers.
        frozen: sites that are not watched, since they were frozen when the DropIn was made.
    """

    def __init__(
        self, model: nn.Module, watched: Sequence[WatchedSite], frozen: Sequence[Site], config: DropInConfig
    ) -> None:
        self.model, self.watched, self.frozen, self.config = model, watched, frozen, config
        self._checked: tuple[int, ...] | None = None  # the optimizers, and how much state, that were looked at last
        self._told: set[str] = set()

    def admit(self, optimizer: Any) -> Optimizers:
        """The optimizers, after everything that can be refused was looked at, the first time on every rank.

        Raises:
            TypeError, ValueError: see `checked_optimizers`, `require_resettable`, `require_operable_site`.
            RuntimeError: another rank refuses.
        """
        error: Exception | None = None
        try:
            optimizers = checked_optimizers(optimizer, [known.site for known in self.watched], self.config)
            key = self._require(optimizers)
        except (TypeError, ValueError) as refusal:
            error = refusal
        if self._checked is None:
            agree(error)
        elif error is not None:
            raise error
        self._checked = key
        self._tell_what_does_not_learn(optimizers)
        return optimizers

    def _require(self, optimizers: Optimizers) -> tuple[int, ...]:
        sites = [known.site for known in self.watched]
        for site in sites:
            require_operable_site(self.model, site, freezes=self.config.freeze_existing)
        if self.config.synaptic_lr > 0:
            refuse_half_precision(sites)
        if self.config.freeze_existing:
            refuse_decay(optimizers, sites)
        for known in self.watched:
            known.learns = optimizers.train(known.site.weights)
            known.learns_whole = known.learns and optimizers.train(known.site.parameters)
        key = (*map(id, optimizers.found), *(len(one.state) for one in optimizers.found))
        if self.config.changes_neurons and key != self._checked:
            require_resettable(optimizers, [known.site for known in self.watched if known.learns])
        return key

    def tell_what_was_not_seen(self) -> None:
        """At the first event, for which alone the device is asked."""
        if "seen" in self._told:
            return
        self._told.add("seen")
        learning = (known for known in self.watched if known.learns)
        names = [known.site.name for known in learning if not bool(known.statistics.seen.any())]
        why = "is it used, and does the loss reach it?"
        self._tell("no gradient came to the neurons of %s since training began, and none is replaced: %s", names, why)

    def _tell_what_does_not_learn(self, optimizers: Optimizers) -> None:
        still = [known.site.name for known in self.watched if not known.learns]
        self._tell("neurons of %s stay as they are: their weights are %s", still, WHY)
        in_part = [known.site.name for known in self.watched if known.learns and not known.learns_whole]
        self._tell(
            "biases or normalization of %s stay as they are when neurons are replaced, and none are added or removed there: "
            "they are %s",
            in_part,
            WHY,
        )
        thawed = [site.name for site in self.frozen if optimizers.train(site.weights)]
        fix = "make a new DropIn to take it in"
        self._tell("%s was frozen when DropIn was made and is not watched; %s", thawed, fix)

    def _tell(self, message: str, names: Sequence[str], more: str) -> None:
        """Once for each name."""
        new = [name for name in names if f"{message}{name}" not in self._told]
        if new:
            self._told |= {f"{message}{name}" for name in new}
            logger.warning(message, ", ".join(new), more)
