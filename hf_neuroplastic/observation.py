"""Watches a model's sites while it trains: forward hooks that leave every output as it is."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neuroplastic_kernels.reference.ffn_activation import record_moments

from .sites import Site
from .statistics import NeuronStatistics

logger = logging.getLogger(__name__)


class FrameMask:
    """Which frames of the running forward pass are no padding.

    The feed-forward layers of audio models receive hidden states only, so the mask is taken from the model's own arguments,
    once per forward pass, and brought to the frame rate when the first site asks.
    """

    def __init__(self, model: nn.Module) -> None:
        self._signature = inspect.signature(type(model).forward)
        downsamplers = (getattr(module, "_get_feature_vector_attention_mask", None) for module in model.modules())
        self._downsample: Any = next(filter(None, downsamplers), None)
        lengths = (getattr(module, "_get_feat_extract_output_lengths", None) for module in model.modules())
        self._output_lengths: Any = next(filter(None, lengths), None)
        self._attention_mask: Tensor | None = None
        self._frames: dict[tuple[int, ...], Tensor | None] = {}
        self._warned = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the root model."""
        mask = kwargs.get("attention_mask")
        if mask is None and args:
            try:
                mask = self._signature.bind_partial(module, *args, **kwargs).arguments.get("attention_mask")
            except TypeError:  # the forward pass itself will report arguments that do not fit
                mask = None
        self._attention_mask = mask if isinstance(mask, Tensor) else None
        self._frames = {}

    def for_tokens(self, shape: torch.Size) -> Tensor | None:
        """[batch, frames] bool for hidden states of leading shape `shape`, or None if every frame counts."""
        if self._attention_mask is None or len(shape) != 2:
            return None
        key = tuple(shape)
        if key not in self._frames:
            self._frames[key] = self._at_frame_rate(self._attention_mask, *key)
        return self._frames[key]

    def _at_frame_rate(self, mask: Tensor, batch: int, frames: int) -> Tensor | None:
        if mask.ndim == 2 and mask.shape[0] == batch:
            if mask.shape[1] == frames:
                return mask.bool()
            if self._downsample is not None:
                with torch.no_grad():
                    return _at_rate(frames, self._downsample(self._frames_of(mask.shape[1]), mask))
        if not self._warned:
            logger.warning(
                "attention_mask of shape %s cannot be related to %d frames of %d samples: padded frames are counted",
                tuple(mask.shape), frames, batch,
            )  # fmt: skip
            self._warned = True
        return None

    def _frames_of(self, samples: int) -> int:
        return int(self._output_lengths(torch.tensor(samples)))


def _at_rate(frames: int, mask: Tensor) -> Tensor:
    """A mask [batch, T] at the rate of the front end as [batch, frames]: encoders such as SEW's drop to a part of it."""
    mask = mask.bool()
    if mask.shape[1] == frames:
        return mask
    lengths = mask.sum(1) // (mask.shape[1] // frames)
    return torch.arange(frames, device=mask.device) < lengths.unsqueeze(1)


class Observer:
    """A forward hook of a site's activation: passes its output on and records the neurons' moments in the backward pass."""

    def __init__(self, everyone: NeuronStatistics, statistics: NeuronStatistics, frame_mask: FrameMask) -> None:
        self.everyone, self.statistics, self.frame_mask, self.enabled = everyone, statistics, frame_mask, True

    def active(self, module: nn.Module) -> bool:
        """Whether a pass through `module` is to be observed now."""
        return self.enabled and module.training and torch.is_grad_enabled()

    def token_mask(self, z: Tensor) -> Tensor | None:
        """Which tokens of z [..., N] count; brings the statistics to its device."""
        self.everyone.to(z.device)
        return self.frame_mask.for_tokens(z.shape[:-1])

    # Recording writes outside the graph; a compiled model breaks its graph here and goes on.
    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: Any, z: Tensor) -> Tensor:
        if not (self.active(module) and z.requires_grad):
            return z
        token_mask = self.token_mask(z)
        return record_moments(z, self.statistics.moments, token_mask)


def freeze_existing(sites: Sequence[Site], statistics: Sequence[NeuronStatistics]) -> list[RemovableHandle]:
    """Sets the gradients of all neurons but fresh ones, and of outgoing biases, to zero; removing the handles ends it."""
    handles = []
    for site in sites:
        if site.chained:
            raise ValueError(
                f"freeze_existing cannot part the neurons of {site.name!r}: a Linear belongs to another site as well"
            )
    for site, known in zip(sites, statistics, strict=True):
        handles.append(site.up.weight.register_hook(lambda grad, known=known: grad * known.fresh.to(grad).unsqueeze(1)))
        handles.append(site.down.weight.register_hook(lambda grad, known=known: grad * known.fresh.to(grad)))
        if site.up.bias is not None and site.up.bias.requires_grad:
            handles.append(site.up.bias.register_hook(lambda grad, known=known: grad * known.fresh.to(grad)))
        if site.down.bias is not None and site.down.bias.requires_grad:
            handles.append(site.down.bias.register_hook(torch.zeros_like))
    return handles


def is_watched(model: nn.Module) -> bool:
    """Whether a DropIn is patched into `model`."""
    return any(isinstance(hook, Observer) for module in model.modules() for hook in module._forward_hooks.values())


def observe(
    model: nn.Module, sites: Sequence[Site], everyone: NeuronStatistics, statistics: Sequence[NeuronStatistics]
) -> tuple[list[Observer], list[RemovableHandle]]:
    """Attaches an Observer to every site and a FrameMask to the model; removing the handles undoes it all.

    Args:
        everyone: the statistics of all sites' neurons; `statistics` are its parts, one per site.

    Raises:
        RuntimeError: a site is being watched already.
    """
    for site in sites:
        if any(isinstance(hook, Observer) for hook in site.activation._forward_hooks.values()):
            raise RuntimeError(
                f"site {site.name!r} is patched already; call unpatch() on the earlier DropIn, or, for the copy of a patched "
                f"model, hf_neuroplastic.unpatch(model)"
            )
    frame_mask = FrameMask(model)
    observers = [Observer(everyone, known, frame_mask) for known in statistics]
    handles: list[RemovableHandle] = [model.register_forward_pre_hook(frame_mask, with_kwargs=True)]
    handles += [
        site.activation.register_forward_hook(observer) for site, observer in zip(sites, observers, strict=True)
    ]
    return observers, handles
