"""Statistics of neurons: sums over the tokens of the current step, moving averages of the sums, ages, scaling factors.

All are plain tensors beside the model, not buffers of the model: DistributedDataParallel overwrites buffers with rank 0's at
every forward pass, and a checkpoint of the model must stay a checkpoint of the stock model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neuroplastic_kernels import neuron_sums

from ..sites import Site, inert_slots

STATE_NAMES = ("averages", "weight", "age", "active", "scale", "rest", "seen", "fresh")
RANGES = {"weight": (0.0, 1.0), "age": (0, 2**62), "rest": (0, 2**62), "scale": (0.0, math.inf)}
NEVER_CHANGED = 2**31  # steps of rest before any change: longer than every cool-down


class NeuronStatistics:
    """The statistics of N neurons: of one site, or of all sites side by side, of which `split` gives the sites as views.

    Attributes:
        sums: [ROWS, N] float32 sums over the tokens of the step under way (rows: neuroplastic_kernels.neuron_sums).
        probe: [ROWS, N] float32, a leaf that a compiled model is given in place of the sums: what it gets as its gradient
            is added to them. So the compiled graph writes to no input, and any number of passes may wait for their backward.
        averages: [ROWS - 1, N] float32 moving averages of the sums per token, not yet bias-corrected.
        weight: [N] float32 total weight of those averages, 1 - decay^k after k observed steps; 0 means nothing is known.
        age: [N] int64 optimizer steps since the neuron was born; steps in which its layer saw no token do not count.
        active: [N] bool; an inactive slot is held in reserve and takes no part in means, scores or scaling.
        scale: [N] float32 factor that synaptic scaling has applied to the neuron's incoming weights.
        rest: [N] int64 steps since neurons were last changed in the neuron's site.
        fresh: [N] bool; whether DropIn made the neuron.
        seen: [N] bool; whether the neuron was observed since the last event. Nothing is decided on old observations.
    """

    sums: Tensor
    probe: Tensor
    averages: Tensor
    weight: Tensor
    age: Tensor
    active: Tensor
    scale: Tensor
    rest: Tensor
    seen: Tensor
    fresh: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """tensors: all attributes but `probe`, by name."""
        self._parts: list[NeuronStatistics] = []
        self._take(tensors)

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        vars(self).update(tensors)
        self.probe = _probe_of(self)

    @classmethod
    def unknown(cls, width: int, device: torch.device | str = "cpu") -> NeuronStatistics:
        """The statistics of neurons of which nothing is known yet."""
        on: dict[str, Any] = {"device": device}
        return cls(
            {
                "sums": torch.zeros(neuron_sums.ROWS, width, **on),
                "averages": torch.zeros(neuron_sums.ROWS - 1, width, **on),
                "weight": torch.zeros(width, **on),
                "age": torch.zeros(width, dtype=torch.int64, **on),
                "active": torch.ones(width, dtype=torch.bool, **on),
                "scale": torch.ones(width, **on),
                "rest": torch.full((width,), NEVER_CHANGED, dtype=torch.int64, **on),
                "seen": torch.zeros(width, dtype=torch.bool, **on),
                "fresh": torch.zeros(width, dtype=torch.bool, **on),
            }
        )

    def split(self, widths: Sequence[int]) -> list[NeuronStatistics]:
        """The statistics of neighbouring groups of neurons, as views: what changes in one changes in both."""
        self._parts = [NeuronStatistics(views) for views in self._views(widths)]
        return self._parts

    def _views(self, widths: Sequence[int]) -> list[dict[str, Tensor]]:
        names = ("sums", *STATE_NAMES)
        columns = (getattr(self, name).split(list(widths), dim=-1) for name in names)
        return [dict(zip(names, views, strict=True)) for views in zip(*columns, strict=True)]

    def to(self, device: torch.device) -> None:
        """Moves every tensor to `device`, where the model has gone; parts remain views."""
        if self.sums.device == device:
            return
        self._take({name: getattr(self, name).to(device) for name in ("sums", *STATE_NAMES)})
        widths = [part.weight.numel() for part in self._parts]
        for part, views in zip(self._parts, self._views(widths) if widths else [], strict=True):
            part._take(views)

    def _average(self, row: int) -> Tensor:
        return self.averages[row] / self.weight.clamp_min(torch.finfo(torch.float32).tiny)

    @property
    def activity(self) -> Tensor:
        """[N] mean |z|; 0 where nothing was observed yet."""
        return self._average(neuron_sums.ABS_OUTPUT)

    @property
    def gradient(self) -> Tensor:
        """[N] mean |dz|."""
        return self._average(neuron_sums.ABS_OUTPUT_GRADIENT)

    @property
    def mean_output(self) -> Tensor:
        """[N] mean z."""
        return self._average(neuron_sums.OUTPUT)

    @property
    def contribution(self) -> Tensor:
        """[N] activity * gradient."""
        return self.activity * self.gradient

    def update(self, decay: float, gradient_scale: Tensor | float = 1.0, steps: int = 1) -> None:
        """Ends a step: averages the sums, ages the neurons, clears the sums.

        Neurons that saw no token (their layer was skipped by LayerDrop, say) are left as they were, and so are those whose
        sums are not finite, as after an overflow.

        Args:
            decay: of the moving averages.
            gradient_scale: what the loss was multiplied by (mixed precision); divided out of the gradients.
            steps: optimizer steps that this observation stands for, by which the neurons age.
        """
        tokens = self.sums[neuron_sums.TOKENS]
        observed = (tokens > 0) & torch.isfinite(self.sums).all(0)
        mean = self.sums[: neuron_sums.TOKENS] / tokens.clamp_min(1.0)
        mean[neuron_sums.ABS_OUTPUT_GRADIENT] /= gradient_scale
        # decay * x + (1 - decay) * mean rather than lerp: with decay 0 the last step's mean must come out exactly.
        self.averages.copy_(torch.where(observed, decay * self.averages + (1.0 - decay) * mean, self.averages))
        self.weight.copy_(torch.where(observed, decay * self.weight + (1.0 - decay), self.weight))
        self.age += observed * steps
        self.rest += steps
        self.seen |= observed
        self.sums.zero_()

    def discard(self) -> None:
        """Forgets the step under way, whose update was skipped."""
        self.sums.zero_()

    def begin_anew(self, mask: Tensor) -> None:
        """Nothing is known any more of the masked neurons' averages, age and scaling factor. mask: [N] bool."""
        self.averages.masked_fill_(mask, 0.0)
        self.weight.masked_fill_(mask, 0.0)
        self.age.masked_fill_(mask, 0)
        self.scale.masked_fill_(mask, 1.0)
        self.seen.masked_fill_(mask, False)

    def forget(self, mask: Tensor) -> None:
        """The masked neurons of this site are new: their averages, age and scaling factor start again. mask: [N] bool."""
        self.begin_anew(mask)
        self.fresh.masked_fill_(mask, True)
        self.rest.masked_fill_(mask.any(), 0)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs. The sums are those of an unfinished step and are not part of it."""
        return {name: getattr(self, name).clone() for name in STATE_NAMES}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a `state_dict` of a site of the same width, all or nothing.

        Raises:
            ValueError: names missing or unknown, a tensor of another shape or dtype, or values that no training leaves.
        """
        if set(state) != set(STATE_NAMES):
            raise ValueError(f"the statistics of a site must hold {sorted(STATE_NAMES)}, got {sorted(state)}")
        for name in STATE_NAMES:
            own, new = getattr(self, name), state[name]
            if own.shape != new.shape or own.dtype != new.dtype:
                raise ValueError(
                    f"statistics {name!r} must be {own.dtype} of shape {tuple(own.shape)}, "
                    f"got {new.dtype} of shape {tuple(new.shape)}"
                )
            low, high = RANGES.get(name, (-math.inf, math.inf))
            if not bool((torch.isfinite(new) & (new >= low) & (new <= high)).all()):
                raise ValueError(f"statistics {name!r} must be finite and lie in [{low}, {high}]; the file is damaged")
        means = state["averages"]
        if bool((means[[neuron_sums.ABS_OUTPUT, neuron_sums.ABS_OUTPUT_GRADIENT]] < 0).any()):
            raise ValueError("statistics 'averages' of magnitudes must not be negative; the file is damaged")
        for name in STATE_NAMES:
            getattr(self, name).copy_(state[name])


def _probe_of(statistics: NeuronStatistics) -> Tensor:
    probe = torch.zeros_like(statistics.sums, requires_grad=True)

    @torch.no_grad()
    def collect(probe: Tensor) -> None:
        statistics.sums.add_(0.0 if probe.grad is None else probe.grad)
        probe.grad = None

    probe.register_post_accumulate_grad_hook(collect)
    return probe


def reduce_sums(sums: Tensor) -> None:
    """Adds up sums [ROWS, N] over all ranks in place, so that every rank goes on with the same numbers.

    Data-parallel training averages the ranks' losses, so a gradient belongs to the loss divided by the number of ranks.
    Without a process group of several ranks this does nothing.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sums[neuron_sums.ABS_OUTPUT_GRADIENT] /= dist.get_world_size()
        dist.all_reduce(sums)


@dataclass(eq=False)
class WatchedSite:
    """A site, and what a DropIn knows of the site's neurons.

    Attributes:
        start_width: active neurons at the start of training.
        replaced: 0-dim int64 tensor: how many neurons have been replaced.
        replaced_again: 0-dim int64 tensor: how many of these DropIn had made itself, and went at the first event at which they
            were old enough.
        learns: whether the weights are trained by the optimizers that DropIn was given last; neurons of other sites stay.
        learns_whole: whether biases and the rest are trained as well, without which no neuron can be silenced.
    """

    site: Site
    statistics: NeuronStatistics
    start_width: int
    replaced: Tensor
    replaced_again: Tensor
    learns: bool = True
    learns_whole: bool = True


def watched_sites(
    sites: Sequence[Site], all_neurons: NeuronStatistics, start_widths: Sequence[int]
) -> list[WatchedSite]:
    """The sites with their parts of `all_neurons`'s statistics; slots in reserve are inactive."""
    parts = all_neurons.split([site.width for site in sites])
    for site, part in zip(sites, parts, strict=True):
        part.active &= ~inert_slots(site)
    replaced = torch.zeros(2, len(sites), dtype=torch.int64, device=all_neurons.weight.device).unbind(1)
    return [
        WatchedSite(site, part, width, *counts)
        for site, part, width, counts in zip(sites, parts, start_widths, replaced, strict=True)
    ]
