"""DropIn for a plain PyTorch loop: watch neurons, replace the useless, scale synapses (arXiv 2603.24343)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .config import DropInConfig
from .decide.criteria import score_sites
from .decide.decisions import (
    Action,
    Decision,
    first_judged,
    is_due,
    plan_replacement,
    plan_widths,
    scheduled_widths,
)
from .dropin_state import checked_state, require_same_widths
from .observe import fused_forward
from .observe.health import neuron_health
from .observe.hooks import Observer, observe
from .observe.padding import FrameMask, FrameMasks
from .observe.statistics import NeuronStatistics, reduce_sums, watched_sites
from .operate.admission import Admission
from .operate.optimizers import Optimizers
from .operate.resize import make_room
from .operate.step_factors import StepFactors, freeze_existing
from .operate.surgery import apply_decisions
from .operate.synaptic_scaling import scale_synapses
from .operate.widths import HOOKS, fit_widths, reconcile, reconcile_after_load, refuse_other_widths
from .sites import Site, find_sites, require_abilities, select_sites

logger = logging.getLogger(__name__)


class DropIn:
    """Neuron-level plasticity for the feed-forward layers of `model`.

        dropin = DropIn(model, DropInConfig(), total_steps=1000)
        for batch in batches:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            dropin.step(optimizer)

    The model stays what it was: same Parameters, same names, same outputs, no factor in its forward pass. Only hooks are
    added, and `unpatch()` takes them away.

    Args:
        model: a model of a known architecture, or any with Linear-activation-Linear or convolution-activation-convolution
            in a torch.nn.Sequential, or with a GRU that `config.recurrent` names; before it is wrapped for distributed
            training.
        config: what to do; DropInConfig() by default.
        total_steps: optimizer steps of the whole training, or "trainer" where DropInCallback will know them. Without them a
            `config.stop` that is a share of training, as the default is, means no stop, which a log line says once; a
            share as `config.start`, and `config.extra_neurons`, need them.
        state: the `state_dict` of a run that is to go on. The model, be it the one that run started with or one loaded from
            its checkpoint, then gets the widths of that run and no more.

    Attributes:
        watched: the watched sites in model order, each with its statistics, its active neurons at the start, and the number of
            its neurons that have been replaced; `sites`, `statistics` and `replaced` are these columns alone.
        step_count: optimizer steps taken so far.
        events: how often decisions were carried out; every event draws other random numbers.

    Raises:
        ValueError: no site matches (see select_sites), a configuration that needs `total_steps`, or a state of other sites or
            of narrower ones.
        RuntimeError: the model is patched already.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DropInConfig | None = None,
        *,
        total_steps: int | Literal["trainer"] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if config is not None and not isinstance(config, DropInConfig):
            raise TypeError(f"config must be a DropInConfig, got {type(config).__name__}; write DropInConfig(...)")
        self.config = config or DropInConfig()
        self.total_steps = _checked_total_steps(total_steps, self.config)
        sites = select_sites(model, self.config.layers, self.config.recurrent)
        require_abilities(sites, self.config)
        if state is None:
            start_widths = make_room(model, sites, self.config)
        else:
            loaded = checked_state(state, sites)
            fit_widths(model, sites, loaded.widths)
            start_widths = loaded.start_widths
        self._all = NeuronStatistics.unknown(sum(site.width for site in sites), sites[0].weights[0].device)
        self.watched = watched_sites(sites, self._all, start_widths)
        self.step_count, self.events = 0, 0
        self.driven_to: tuple[int, int] | None = None  # the step of a Trainer that a callback has ended last
        self._workspace: dict[Any, Any] = {}  # what fused operations keep between calls
        self._factors = StepFactors(self.watched, self._all, self.config)
        self._observers: list[Observer]
        self._observers, self._handles = observe(model, self.watched, self._all)
        for site, observer in zip(sites, self._observers, strict=True):
            fused_forward.install(site, observer, self.config.backend)
        self._handles += [refuse_other_widths(model, sites), reconcile_after_load(model, self.watched)]
        # Layers that are frozen now and learn later would be missed without a word.
        found = find_sites(model, self.config.recurrent) if self.config.layers is None else []
        self._admission = Admission(model, self.watched, [site for site in found if not site.trainable], self.config)
        if self.config.freeze_existing:
            self._handles += freeze_existing(self.watched)
        if state is not None:
            self.load_state_dict(state)

    @property
    def sites(self) -> list[Site]:
        """The watched sites, in model order."""
        return [known.site for known in self.watched]

    @property
    def statistics(self) -> list[NeuronStatistics]:
        """The statistics of each site's neurons."""
        return [known.statistics for known in self.watched]

    @property
    def replaced(self) -> list[Tensor]:
        """Per site, how many neurons have been replaced: 0-dim tensors on the device."""
        return [known.replaced for known in self.watched]

    @property
    def patched(self) -> bool:
        """Whether the model is being watched."""
        return bool(self._handles)

    def watches(self, model: nn.Module | None) -> bool:
        """Whether this object is patched into `model`, with the parameters it has now."""
        if not self.patched or model is None:
            return False
        held = {id(part) for part in (*model.modules(), *model.parameters())}
        return all(id(part) in held for site in self.sites for part in (site.watched, *site.weights))

    def unpatch(self) -> None:
        """Takes the hooks away; the model is then exactly the stock model, with the weights it has now. May be repeated."""
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            fused_forward.remove(site.container)
        self._factors.detach()
        self._handles = []

    def restart(self, step_count: int = 0) -> None:
        """Begins the schedule anew at `step_count`; what is known of the neurons stays, but for a step under way."""
        self.step_count = step_count
        self.discard()
        reconcile(self.watched, to_sleep=False)
        self._plan_observation()

    def scale_steps(self, optimizer: Any) -> None:
        """From now on `optimizer` takes steps by `config.young_plasticity` and `config.old_plasticity`, until `unpatch()`.

        `step` and DropInCallback see to it. In a plain loop call it before the first step, lest that one go unscaled; without
        such a configuration it does nothing.

        Raises:
            TypeError: not a NeuroPlastic optimizer.
        """
        if self.config.scales_steps:
            self._factors.attach(Optimizers(optimizer).innermost)

    def discard(self) -> None:
        """Forgets what was seen since the last `step`, as after a backward pass that ran out of memory and is tried again."""
        self._all.discard()
        self._forget_passes()

    def _forget_passes(self) -> None:
        for observer in self._observers:
            observer.masks.forget()

    @torch.compiler.disable(reason="DropIn.step decides by what the numbers are, and runs beside compiled graphs")
    @torch.no_grad()
    def step(self, optimizer: Any = None, *, gradient_scale: Tensor | float | None = None) -> None:
        """Ends an optimizer step. Call it after `optimizer.step()`, on every rank.

        Updates the statistics, replaces neurons if an event is due, then scales synapses. torch.compile leaves this alone.

        Args:
            optimizer: the optimizer whose state of reborn neurons is to be reset, a wrapper of one (accelerate's,
                ZeroRedundancyOptimizer, Lookahead), or a list of all that train the model; None leaves optimizer state and
                steps alone. Layers whose weights no optimizer holds are left alone, with a word. Nothing happens between the
                micro-batches of accelerate's `accumulate`, and a step that accelerate skipped (fp16 overflow) is forgotten.
            gradient_scale: what the loss was multiplied by, as by torch.amp.GradScaler, whose `get_scale()` before its
                `update()` belongs here. None takes it from accelerate's optimizer (as it was for this step), or 1.

        Raises:
            RuntimeError: the model is not patched any more.
            TypeError: no torch optimizer, one whose state cannot be reset or whose steps cannot be scaled per neuron, or
                sharded weights; the model is unchanged then.
            ValueError: an optimizer of another model, or `total_steps` that were left to a DropInCallback.
        """
        if not self.patched:
            raise RuntimeError("this DropIn was unpatched and sees no neurons; make a new DropIn(model)")
        optimizers = Optimizers(optimizer)
        if optimizers.accumulating:
            return
        if optimizers.skipped:
            self.discard()
            return
        optimizers = self._admission.admit(optimizer)
        if self.total_steps is None and isinstance(self.config.stop, float) and self.config.max_fraction > 0:
            _say_once(
                f"stop={self.config.stop} is a share of a training of unknown length: neurons are replaced to its end"
            )
        due = is_due(self.step_count + 1, self.config, self.total_steps) and self.config.max_fraction > 0
        targets = scheduled_widths(self.config, self.watched, self.step_count + 1, self.total_steps)
        if optimizers.found or not self._factors.optimizers:
            self.scale_steps(optimizer)
        self.step_count += 1
        self._forget_passes()
        if self._observers[0].enabled:
            scale = optimizers.loss_scale() if gradient_scale is None else gradient_scale
            reduce_sums(self._all.sums)
            self._all.update(self.config.statistics_decay, scale, self.config.observe_every)
        if targets or due:
            reconcile(self.watched)  # an EMA copy, or a rollback, may have put other weights there
        if targets:
            scores = self.scores()
            for decisions in plan_widths(self.watched, scores, self.config, targets):
                self._carry_out(decisions, scores, optimizers)
        if due:
            self._admission.tell_what_was_not_seen()
            scores = self.scores()
            self._carry_out(plan_replacement(self.watched, scores, self.config), scores, optimizers)
        if due or targets:
            self._all.seen.zero_()
        if self.config.synaptic_lr > 0:
            scale_synapses(self.watched, self._all, self.config, workspace=self._workspace)
        self._factors.update()
        self._plan_observation()

    def scores(self) -> list[Tensor]:
        """Per site [N] float32: the usefulness of each neuron by the configured criterion, as decisions see it now."""
        return score_sites(self.watched, self.config, self.events)

    def apply(self, decisions: Sequence[Decision], optimizer: Any = None) -> None:
        """Carries out one decision per site, all of one action: the way to change neurons of one's own choosing.

        Raises:
            ValueError, TypeError: another number of decisions than of sites, or see surgery.apply_decisions.
        """
        decisions = list(decisions)
        if len(decisions) != len(self.sites) or not all(isinstance(decision, Decision) for decision in decisions):
            raise ValueError(
                f"decisions must be {len(self.sites)} Decision objects, one per site in the order of `sites`, got "
                f"{[type(decision).__name__ for decision in decisions]}"
            )
        self._carry_out(decisions, self.scores(), self._admission.admit(optimizer))
        self._factors.update()

    def report(self) -> dict[str, float]:
        """Plain numbers for a log, over all sites (keys: health.neuron_health), read back from the device."""
        return neuron_health(self._all, self.watched)

    def state_dict(self) -> dict[str, Any]:
        """All that future decisions depend on: step count, and per site name its statistics and number of replacements."""
        return {
            "step_count": self.step_count,
            "events": self.events,
            "start_widths": [known.start_width for known in self.watched],
            "config": self.config.to_dict(),
            "sites": {
                known.site.name: {
                    **known.statistics.state_dict(),
                    "replaced": known.replaced.clone(),
                    "replaced_again": known.replaced_again.clone(),
                }
                for known in self.watched
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a `state_dict`, all or nothing. The configuration stays this object's own.

        Raises:
            ValueError: other sites or widths, or statistics that are incomplete.
        """
        loaded = checked_state(state, self.sites)
        require_same_widths(loaded, self.sites)
        self._all.load_state_dict(loaded.all_neurons.state_dict())
        rows = zip(self.watched, loaded.start_widths, loaded.replaced, loaded.replaced_again, strict=True)
        for known, start_width, replaced, again in rows:
            known.start_width, known.replaced, known.replaced_again = start_width, replaced, again
        self.events = loaded.events
        self.restart(loaded.step_count)
        self._factors.update()

    def _plan_observation(self) -> None:
        """Watches the next step, or does not, by `observe_every`."""
        for observer in self._observers:
            observer.enabled = self.step_count % self.config.observe_every == 0

    def _carry_out(self, decisions: list[Decision], scores: list[Tensor], optimizers: Optimizers) -> None:
        young = [first_judged(known.statistics, self.config) for known in self.watched]
        changed = apply_decisions(
            self.watched,
            decisions,
            scores,
            config=self.config,
            optimizers=optimizers,
            event=self.events,
            workspace=self._workspace,
        )
        self.events += 1
        if decisions[0].action is Action.REPLACE:
            for known, mask, early in zip(self.watched, changed, young, strict=True):
                known.replaced = known.replaced.to(mask.device, non_blocking=True) + mask.sum()
                again = (mask & early).sum()
                known.replaced_again = known.replaced_again.to(mask.device, non_blocking=True) + again


def _checked_total_steps(total_steps: Any, config: DropInConfig) -> int | None:
    if total_steps == "trainer":
        return None
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise ValueError(
            f'total_steps must be an int of at least 1, "trainer", or None if it is not known, got {total_steps!r}'
        )
    needs = "extra_neurons" if config.extra_neurons is not None else f"start={config.start}"
    if total_steps is None and (
        config.extra_neurons is not None or (isinstance(config.start, float) and config.start > 0)
    ):
        raise ValueError(
            f"{needs} follows the progress of training: pass DropIn(..., total_steps=...), the number of optimizer steps; "
            f'under Trainer give the configuration to DropInCallback, or pass total_steps="trainer"'
        )
    return total_steps


@cache
def _say_once(message: str) -> None:
    logger.warning("%s; pass DropIn(..., total_steps=...)", message)


def unpatch(model: nn.Module) -> None:
    """Takes every DropIn's hooks off `model`: for copies of a patched model, whose DropIn watches the original."""
    for module in model.modules():
        fused_forward.remove(module)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (Observer, FrameMask, FrameMasks))]:
                del hooks[key]
        for hooks in (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):
            for key in [key for key, hook in hooks.items() if getattr(_bare(hook), "func", None) in HOOKS]:
                del hooks[key]


def _bare(hook: Any) -> Any:
    """What torch wraps to hand the module over."""
    return getattr(hook, "hook", hook)
