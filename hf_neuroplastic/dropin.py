"""DropIn for a plain PyTorch loop: watch neurons, replace the useless, scale synapses (arXiv 2603.24343)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuroplastic_kernels import synaptic_scale

from .config import DropInConfig
from .criteria import score
from .decisions import Action, Decision, decide_replacement, is_due
from .observation import Observer, observe
from .optimizer_state import unwrap_optimizer
from .saved_keys import accept_saved_keys
from .sites import Site, select_sites
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
        self.total_steps = total_steps
        self.sites: list[Site] = select_sites(model, self.config.layers)
        widths = [site.width for site in self.sites]
        self._all = NeuronStatistics(sum(widths), self.sites[0].up.weight.device)
        self.statistics = self._all.split(widths)
        self.step_count = 0
        self.replaced = [torch.zeros((), dtype=torch.int64) for _ in self.sites]
        self.observers: list[Observer]
        self.observers, self._handles = observe(model, self.sites, self._all, self.statistics)
        self._handles.append(accept_saved_keys(model))

    @property
    def patched(self) -> bool:
        """Whether the model is being watched."""
        return bool(self._handles)

    def unpatch(self) -> None:
        """Takes the hooks away; the model is then exactly the stock model, with the weights it has now. May be repeated."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def step(self, optimizer: Any = None) -> None:
        """Ends an optimizer step. Call it after `optimizer.step()`, on every rank.

        Updates the statistics, replaces neurons if an event is due, then scales synapses.

        Args:
            optimizer: the optimizer (possibly wrapped by accelerate) whose state of reborn neurons is to be reset; None
                leaves optimizer state alone. A step it reports as skipped (fp16 overflow) is forgotten.

        Raises:
            TypeError: no torch optimizer, or one whose state cannot be reset per neuron; the model is unchanged then.
            ValueError: a share of training in the configuration, but no `total_steps`.
        """
        if getattr(optimizer, "step_was_skipped", False):
            self._all.discard()
            return
        inner = None if optimizer is None else unwrap_optimizer(optimizer)
        due = is_due(self.step_count + 1, self.config, self.total_steps)
        self.step_count += 1
        if self.observers[0].enabled:
            reduce_moments(self._all.moments)
            self._all.update(self.config.statistics_decay, _gradient_scale(optimizer), self.config.observe_every)
        if due:
            self._replace(inner)
        if self.config.synaptic_lr > 0:
            self._scale_synapses()
        watch_next = self.step_count % self.config.observe_every == 0
        for observer in self.observers:
            observer.enabled = watch_next

    def scores(self) -> list[Tensor]:
        """Per site [N] float32: the usefulness of each neuron by the configured criterion, as decisions see it now."""
        return [
            score(
                self.config.criterion, site, known, relative=self.config.relative,
                seed=self.config.random_seed, event=self.step_count, site_index=index,
            )
            for index, (site, known) in enumerate(zip(self.sites, self.statistics, strict=True))
        ]  # fmt: skip

    def apply(self, decisions: list[Decision], optimizer: Any = None) -> None:
        """Carries out one decision per site, all of one action: the way to change neurons of one's own choosing.

        Raises:
            ValueError, TypeError: see surgery.apply_decisions.
        """
        inner = None if optimizer is None else unwrap_optimizer(optimizer)
        apply_decisions(
            self.sites, self.statistics, decisions, self.scores(),
            action=decisions[0].action, config=self.config, optimizer=inner, event=self.step_count,
        )  # fmt: skip

    def report(self) -> dict[str, float]:
        """Plain numbers for a log, over all sites. Reads them back from the device: ask only when a log is due.

        neuro/replaced_total: neurons replaced so far. neuro/dead_fraction: share of active, observed neurons whose activity
        is at most 2.5 % of their site's mean (the tau = .025 of ReDo). neuro/weak_fraction: share whose contribution is at
        most 10 % of their site's mean. neuro/mean_age: in steps. neuro/activity: mean |z|. neuro/scale_min, neuro/scale_max:
        extremes of the synaptic scaling factors.
        """
        known = self.statistics
        counted = [s.active & (s.weight > 0) for s in known]
        total = max(int(sum(c.sum() for c in counted)), 1)

        def share(values: list[Tensor], fraction: float) -> float:
            low = [(v[c] <= fraction * v[c].mean()).sum() for v, c in zip(values, counted, strict=True)]
            return float(sum(low)) / total

        scale = torch.cat([s.scale[s.active] for s in known])
        return {
            "neuro/replaced_total": float(sum(int(count) for count in self.replaced)),
            "neuro/dead_fraction": share([s.activity for s in known], 0.025),
            "neuro/weak_fraction": share([s.contribution for s in known], 0.1),
            "neuro/mean_age": float(torch.cat([s.age[s.active] for s in known]).double().mean()),
            "neuro/activity": float(sum(s.activity[c].sum() for s, c in zip(known, counted, strict=True))) / total,
            "neuro/scale_min": float(scale.min()),
            "neuro/scale_max": float(scale.max()),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that future decisions depend on: step count, and per site name its statistics and number of replacements."""
        return {
            "step_count": self.step_count,
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
        own, given = [site.name for site in self.sites], list(state["sites"])
        if own != given:
            raise ValueError(f"the state is of the sites {given}, but this DropIn watches {own}; use the same layers")
        step_count, replaced = int(state["step_count"]), []
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
        self.replaced, self.step_count = replaced, step_count

    def _replace(self, optimizer: torch.optim.Optimizer | None) -> None:
        scores = self.scores()
        decisions = [
            decide_replacement(s, known, self.config) for s, known in zip(scores, self.statistics, strict=True)
        ]
        apply_decisions(
            self.sites, self.statistics, decisions, scores,
            action=Action.REPLACE, config=self.config, optimizer=optimizer, event=self.step_count,
        )  # fmt: skip
        self.replaced = [
            count.to(decision.mask.device) + decision.mask.sum()
            for count, decision in zip(self.replaced, decisions, strict=True)
        ]

    def _scale_synapses(self) -> None:
        target = self.config.homeostatic_target
        errors = []
        for known in self.statistics:
            counted = known.active & (known.weight > 0)
            activity = known.activity
            if isinstance(target, str):  # "layer"
                mean = torch.where(counted, activity, 0.0).sum() / counted.sum().clamp_min(1)
                error = torch.where(mean == 0, 0.0, (mean - activity) / mean)
            else:
                error = target - activity
            errors.append(torch.where(counted, error, 0.0))
        synaptic_scale(
            [site.up.weight.detach() for site in self.sites], [known.scale for known in self.statistics], errors,
            rate=self.config.synaptic_lr, scale_range=self.config.scale_range,
        )  # fmt: skip


def _gradient_scale(optimizer: Any) -> Tensor | float:
    """What mixed precision multiplied the loss by: the scaler's own tensor, so that asking needs no synchronisation."""
    scale = getattr(getattr(optimizer, "scaler", None), "_scale", None)
    return 1.0 if scale is None else scale
