"""Hooks that watch a model's sites in training and leave every output unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

from neuroplastic_kernels import record_neuron_sums

from ..sites import Site, require_unsplit
from .padding import FrameMasks, frame_masks
from .statistics import NeuronStatistics, WatchedSite


class Observer:
    """A forward hook of the module whose output is the neurons: passes it on and records their sums in the backward pass.

    The neurons are the output, or the first item of an output tuple, as that of a GRU, whose last state is taken from it. In a
    PackedSequence there is no padding, and every step counts.
    """

    def __init__(
        self,
        site: Site,
        all_neurons: NeuronStatistics,
        statistics: NeuronStatistics,
        masks: FrameMasks,
        home: nn.Module,
    ) -> None:
        self.all_neurons, self.statistics, self.masks, self.enabled = all_neurons, statistics, masks, True
        self.home = home  # where its weight is, there are the statistics
        self.neuron_dim = site.neuron_dim
        self._unasked: Site | None = site
        self.time_first = isinstance(site.watched, nn.RNNBase) and not site.watched.batch_first

    @property
    def active(self) -> bool:
        """Whether a pass is to be observed now: in evaluation mode too, where many fine-tune."""
        return self.enabled and torch.is_grad_enabled()

    def sums(self, z: Tensor) -> Tensor:
        """Where the sums of z go: the statistics' own, or their probe if the pass is being compiled."""
        # Asks z and not `home`: a graph that knows the first layer's weight from its own is compiled for every layer but that.
        if self.statistics.probe.device != z.device:
            _move(self.all_neurons, self.home)
        return self.statistics.probe if torch.compiler.is_compiling() else self.statistics.sums

    def token_mask(self, z: Tensor) -> Tensor | None:
        """Which tokens of z count: a bool tensor of its shape without the neurons, or None for all."""
        tokens = list(z.shape)
        tokens.pop(self.neuron_dim)
        if len(tokens) != 2:
            return None
        if not self.time_first:
            return self.masks.at(tokens, z.device)
        mask = self.masks.at(tokens[::-1], z.device)
        return None if mask is None else mask.T

    def ask(self, z: Tensor) -> None:
        """The first time, outside compiled graphs: whether an engine has split the neurons; see `require_unsplit`."""
        if self._unasked is not None and not torch.compiler.is_compiling():
            require_unsplit(self._unasked, z)
            self._unasked = None

    def observed(self, z: Tensor) -> Tensor:
        """z, which will be recorded when its gradient passes."""
        if not (self.active and z.requires_grad):
            return z
        self.ask(z)
        return record_neuron_sums(z, self.sums(z), self.token_mask(z), self.neuron_dim)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self.observed(output)
        if isinstance(output, PackedSequence):
            return output._replace(data=self.observed(output.data))
        if not self.active:
            return output
        steps, state = self(module, args, output[0]), output[1]
        # The state is a copy of the last step: a gradient that comes by it, and not by the output, must be seen as well.
        return steps, torch.cat([state[:-1], _last_step(steps, self.time_first).unsqueeze(0)])


def _last_step(steps: Tensor | PackedSequence, time_first: bool) -> Tensor:
    """[B, N], or [N] without a batch: the last step of each sequence."""
    if isinstance(steps, PackedSequence):
        padded, lengths = pad_packed_sequence(steps, batch_first=True)
        return padded[torch.arange(len(lengths)), lengths - 1]
    return steps[-1] if time_first or steps.ndim == 2 else steps[:, -1]


class InputObserver(Observer):
    """The same as a forward pre-hook of the module whose first input is the neurons."""

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> Any:
        return (self.observed(args[0]), *args[1:])


@torch.compiler.disable(reason="statistics follow a model that was moved: move it before DropIn(model)")
def _move(statistics: NeuronStatistics, home: Any) -> None:
    statistics.to(home.weight.device)


def is_watched(module: nn.Module) -> bool:
    """Whether a DropIn is patched into `module` or a part of it."""
    return any(
        isinstance(hook, Observer)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    )


def observe(
    model: nn.Module, watched: Sequence[WatchedSite], all_neurons: NeuronStatistics
) -> tuple[list[Observer], list[RemovableHandle]]:
    """Attaches an Observer to every site, and to the modules around the site the hooks that tell its tokens.

    Removing the handles undoes all of it. all_neurons: the statistics of all sites' neurons.

    Raises:
        RuntimeError: a site is being watched already.
    """
    for known in watched:
        if is_watched(known.site.watched):
            raise RuntimeError(
                f"site {known.site.name!r} is patched already; call unpatch() on the earlier DropIn, or, for the copy of a "
                f"patched model, hf_neuroplastic.unpatch(model)"
            )
    masks, takers = frame_masks(model, [known.site.name for known in watched])
    handles: list[RemovableHandle] = [
        module.register_forward_pre_hook(frame_mask, with_kwargs=True) for module, frame_mask in takers
    ]
    home = watched[0].site.down
    observers: list[Observer] = []
    for known, site_masks in zip(watched, masks, strict=True):
        kind = InputObserver if known.site.watch == "input" else Observer
        observer = kind(known.site, all_neurons, known.statistics, site_masks, home)
        module: Any = known.site.watched
        register = module.register_forward_pre_hook if kind is InputObserver else module.register_forward_hook
        handles.append(register(observer))
        observers.append(observer)
    return observers, handles
