"""DropIn for a plain PyTorch loop: watch neurons, replace the useless, scale synapses (arXiv 2603.24343)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuroplastic_kernels import synaptic_scale

from . import fused_forward
from .config import DropInConfig
from .criteria import score
from .decisions import Action, Decision, decide_replacement, decide_width, is_due, nobody, target_width
from .observation import FrameMask, Observer, freeze_existing, observe
from .optimizer_state import unwrap_optimizer
from .report import neuron_health
from .resize import make_room
from .saved_keys import accept_saved_keys
from .sites import Site, inert_slots, require_whole, select_sites
from .statistics import NeuronStatistics, reduce_moments
from .surgery import apply_decisions


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
        model: a model of a known architecture, or any with Linear-activation-Linear in a torch.nn.Sequential; before it is
            wrapped for distributed training.
        config: what to do; DropInConfig() by default.
        total_steps: optimizer steps of the whole training, needed if `config.start` or `config.stop` is a share of it.

    Attributes:
        sites, statistics: the watched layers and what is known of their neurons, in model order.
        step_count: optimizer steps taken so far.
        events: how often decisions were carried out; every event draws other random numbers.
        replaced: per site, how many neurons have been replaced: 0-dim tensors on the device.

    Raises:
        ValueError: no site matches (see select_sites).
        RuntimeError: the model is patched already.
    """

    def __init__(self, model: nn.Module, config: DropInConfig | None = None, *, total_steps: int | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if config is not None and not isinstance(config, DropInConfig):
            raise TypeError(f"config must be a DropInConfig, got {type(config).__name__}; write DropInConfig(...)")
        self.config = config or DropInConfig()
        self.total_steps = _checked_total_steps(total_steps)
        self.sites: list[Site] = select_sites(model, self.config.layers)
        self._start_widths = make_room(model, self.sites, self.config)
        widths = [site.width for site in self.sites]
        self._all = NeuronStatistics(sum(widths), self.sites[0].up.weight.device)
        self.statistics = self._all.split(widths)
        for site, known in zip(self.sites, self.statistics, strict=True):
            known.active &= ~inert_slots(site)
        self.step_count, self.events = 0, 0
        self.replaced = [torch.zeros((), dtype=torch.int64) for _ in self.sites]
        self.observers: list[Observer]
        self.observers, self._handles = observe(model, self.sites, self._all, self.statistics)
        for site, observer in zip(self.sites, self.observers, strict=True):
            fused_forward.install(site, observer, self.config.backend)
        self._handles.append(accept_saved_keys(model))
        if self.config.freeze_existing:
            self._handles += freeze_existing(self.sites, self.statistics)

    @property
    def patched(self) -> bool:
        """Whether the model is being watched."""
        return bool(self._handles)

    def watches(self, model: nn.Module | None) -> bool:
        """Whether this object is patched into `model`, with the parameters it has now."""
        if not self.patched or model is None:
            return False
        held = {id(part) for part in (*model.modules(), *model.parameters())}
        return all(
            id(part) in held for site in self.sites for part in (site.activation, site.up.weight, site.down.weight)
        )

    def unpatch(self) -> None:
        """Takes the hooks away; the model is then exactly the stock model, with the weights it has now. May be repeated."""
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            fused_forward.remove(site.container)
        self._handles = []

    def restart(self, step_count: int = 0) -> None:
        """Begins the schedule anew at `step_count`; what is known of the neurons stays."""
        self.step_count = step_count
        self._plan_observation()

    @torch.no_grad()
    def step(self, optimizer: Any = None, *, gradient_scale: Tensor | float | None = None) -> None:
        """Ends an optimizer step. Call it after `optimizer.step()`, on every rank.

        Updates the statistics, replaces neurons if an event is due, then scales synapses.

        Args:
            optimizer: the optimizer (possibly wrapped by accelerate) whose state of reborn neurons is to be reset; None
                leaves optimizer state alone. A step it reports as skipped (fp16 overflow) is forgotten.
            gradient_scale: what the loss was multiplied by, as by torch.amp.GradScaler, whose `get_scale()` before its
                `update()` belongs here. None takes it from accelerate's optimizer, or 1.

        Raises:
            RuntimeError: the model is not patched any more.
            TypeError: no torch optimizer, one whose state cannot be reset per neuron, or sharded weights; the model is
                unchanged then.
            ValueError: a share of training in the configuration, but no `total_steps`; or an optimizer of another model.
        """
        if not self.patched:
            raise RuntimeError("this DropIn was unpatched and sees no neurons; make a new DropIn(model)")
        if getattr(optimizer, "step_was_skipped", False):
            self._all.discard()
            return
        inner = self._checked_optimizer(optimizer)
        for site in self.sites:
            require_whole(site.name, site.up)
            require_whole(site.name, site.down)
        if self.config.synaptic_lr > 0:
            _refuse_half_precision(self.sites)
        due = is_due(self.step_count + 1, self.config, self.total_steps) and self.config.max_fraction > 0
        targets = self._target_widths(self.step_count + 1)
        self.step_count += 1
        if self.observers[0].enabled:
            scale = _gradient_scale(optimizer) if gradient_scale is None else gradient_scale
            reduce_moments(self._all.moments)
            self._all.update(self.config.statistics_decay, scale, self.config.observe_every)
        if targets:
            self._change_widths(targets, inner)
        if due:
            self._replace(inner)
        if due or targets:
            self._all.seen.zero_()
        if self.config.synaptic_lr > 0:
            self._scale_synapses()
        self._plan_observation()

    def scores(self) -> list[Tensor]:
        """Per site [N] float32: the usefulness of each neuron by the configured criterion, as decisions see it now."""
        return [
            score(
                self.config.criterion, site, known, relative=self.config.relative,
                seed=self.config.random_seed, event=self.events, site_index=index,
            )
            for index, (site, known) in enumerate(zip(self.sites, self.statistics, strict=True))
        ]  # fmt: skip

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
        self._carry_out(decisions, self.scores(), self._checked_optimizer(optimizer))

    def report(self) -> dict[str, float]:
        """Plain numbers for a log, over all sites (keys: report.neuron_health). Reads them back from the device."""
        replaced = sum(int(count) for count in self.replaced)
        return {"neuro/replaced_total": float(replaced), **neuron_health(self._all, self.statistics)}

    def state_dict(self) -> dict[str, Any]:
        """All that future decisions depend on: step count, and per site name its statistics and number of replacements."""
        return {
            "step_count": self.step_count,
            "events": self.events,
            "start_widths": list(self._start_widths),
            "config": self.config.to_dict(),
            "sites": {
                site.name: {**known.state_dict(), "replaced": replaced.clone()}
                for site, known, replaced in zip(self.sites, self.statistics, self.replaced, strict=True)
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a `state_dict`, all or nothing. The configuration stays this object's own.

        Raises:
            ValueError: other sites, or statistics that do not fit theirs.
        """
        counts: dict[str, Any] = {name: state.get(name) for name in ("step_count", "events")}
        for name, count in counts.items():
            if type(count) is not int or count < 0:
                raise ValueError(f"state[{name!r}] must be an int of at least 0, got {count!r}")
        own, given = [site.name for site in self.sites], list(state.get("sites", ()))
        if own != given:
            raise ValueError(f"the state is of the sites {given}, but this DropIn watches {own}; use the same layers")
        start_widths = state.get("start_widths")
        if (
            not isinstance(start_widths, list)
            or len(start_widths) != len(own)
            or any(type(n) is not int for n in start_widths)
        ):
            raise ValueError(f"state['start_widths'] must be {len(own)} ints, one per site, got {start_widths!r}")
        replaced = []
        loaded = NeuronStatistics(sum(site.width for site in self.sites))
        for site, known in zip(self.sites, loaded.split([site.width for site in self.sites]), strict=True):
            tensors = dict(state["sites"][site.name])
            replaced.append(tensors.pop("replaced", torch.zeros((), dtype=torch.int64)).clone())
            try:
                known.load_state_dict(tensors)
            except ValueError as error:
                raise ValueError(f"site {site.name!r}: {error}") from None
        self._all.load_state_dict(loaded.state_dict())
        self._all.discard()
        self.replaced, self.events, self._start_widths = replaced, counts["events"], start_widths
        self.restart(counts["step_count"])

    def _plan_observation(self) -> None:
        """Watches the next step, or does not, by `observe_every`."""
        for observer in self.observers:
            observer.enabled = self.step_count % self.config.observe_every == 0

    def _checked_optimizer(self, optimizer: Any) -> torch.optim.Optimizer | None:
        if optimizer is None:
            return None
        inner = unwrap_optimizer(optimizer)
        held = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
        if not any(id(weight) in held for site in self.sites for weight in (site.up.weight, site.down.weight)):
            raise ValueError("optimizer holds no parameter of the watched layers; pass the one that trains this model")
        idle = self.config.max_fraction == 0 and self.config.active_neurons is None and self.config.active_share is None
        if not idle and any(group.get("state_bits") == 8 for group in inner.param_groups):
            raise TypeError(
                "8-bit optimizer state cannot be reset neuron by neuron: use NeuroPlastic(..., state_bits=32)"
            )
        return inner

    def _replace(self, optimizer: torch.optim.Optimizer | None) -> None:
        scores = self.scores()
        decisions = [
            decide_replacement(s, known, self.config) if site.trainable else nobody(Action.REPLACE, s)
            for site, s, known in zip(self.sites, scores, self.statistics, strict=True)
        ]
        self._carry_out(decisions, scores, optimizer)

    def _target_widths(self, step: int) -> list[int]:
        """Per site, how many neurons should be active after this step; empty if nothing is to be done about it."""
        if self.config.active_neurons is None and self.config.active_share is None:
            return []
        if self.total_steps is None:
            raise ValueError(
                "active_neurons and active_share follow the progress of training: pass DropIn(..., total_steps=...)"
            )
        if step % self.config.interval and step != self.total_steps:
            return []
        targets = [target_width(self.config, start, min(1.0, step / self.total_steps)) for start in self._start_widths]
        return [target for target in targets if target is not None]

    def _change_widths(self, targets: list[int], optimizer: torch.optim.Optimizer | None) -> None:
        scores = self.scores()
        pairs = [
            decide_width(s, known, self.config, target)
            if site.trainable
            else (nobody(Action.GROW, s), nobody(Action.PRUNE, s))
            for site, s, known, target in zip(self.sites, scores, self.statistics, targets, strict=True)
        ]
        for decisions in zip(*pairs, strict=True):
            self._carry_out(list(decisions), scores, optimizer)

    def _carry_out(
        self, decisions: list[Decision], scores: list[Tensor], optimizer: torch.optim.Optimizer | None
    ) -> None:
        changed = apply_decisions(
            self.sites, self.statistics, decisions, scores,
            action=decisions[0].action, config=self.config, optimizer=optimizer, event=self.events,
        )  # fmt: skip
        self.events += 1
        if decisions[0].action is Action.REPLACE:
            self.replaced = [
                count.to(mask.device) + mask.sum() for count, mask in zip(self.replaced, changed, strict=True)
            ]

    def _scale_synapses(self) -> None:
        target = self.config.homeostatic_target
        errors = []
        for site, known in zip(self.sites, self.statistics, strict=True):
            counted = known.active & (known.weight > 0)
            activity = known.activity
            if isinstance(target, str):  # "layer"
                mean = torch.where(counted, activity, 0.0).sum() / counted.sum().clamp_min(1)
                error = (mean - activity) / mean
            else:
                error = target - activity
            errors.append(torch.where(counted & site.trainable, error, 0.0))
        synaptic_scale(
            [site.up.weight.detach() for site in self.sites], [known.scale for known in self.statistics], errors,
            rate=self.config.synaptic_lr, scale_range=self.config.scale_range, backend=self.config.backend,
        )  # fmt: skip


def _gradient_scale(optimizer: Any) -> Tensor | float:
    """What mixed precision multiplied the loss by: the scaler's own tensor, so that asking needs no synchronisation."""
    scale = getattr(getattr(optimizer, "scaler", None), "_scale", None)
    return 1.0 if scale is None else scale


def _refuse_half_precision(sites: Sequence[Site]) -> None:
    for site in sites:
        if site.up.weight.dtype.itemsize < 4:
            raise TypeError(
                f"synaptic_lr must be 0 for weights of {site.up.weight.dtype}: their resolution is too coarse for small steps; "
                f"keep the weights in float32 and compute under autocast (Trainer's bf16=True does)"
            )


def _checked_total_steps(total_steps: Any) -> int | None:
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise ValueError(f"total_steps must be an int of at least 1, or None if it is not known, got {total_steps!r}")
    return total_steps


def unpatch(model: nn.Module) -> None:
    """Takes every DropIn's hooks off `model`: for copies of a patched model, whose DropIn watches the original."""
    for module in model.modules():
        fused_forward.remove(module)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (Observer, FrameMask))]:
                del hooks[key]
