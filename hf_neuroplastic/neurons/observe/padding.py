"""Tokens of a site that are no padding, from the attention masks that the modules around the site receive."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

MOST_PASSES = 64  # before a step, whose masks are kept
logger = logging.getLogger(__name__)


class FrameMask:
    """A forward pre-hook (with keyword arguments) that keeps the `attention_mask` of a module's running forward pass.

    The replicas of DataParallel, one per device, run at the same time, and each has its own.
    """

    def __init__(self, module: nn.Module) -> None:
        names = list(_parameters(module))
        self._position = names.index("attention_mask") if "attention_mask" in names else len(names)
        self._given: dict[torch.device, Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if mask is None and self._position < len(args):
            mask = args[self._position]
        given = self._given if getattr(module, "_is_replica", False) else {}
        if isinstance(mask, Tensor):
            given[mask.device] = mask
        self._given = given

    def on(self, device: torch.device) -> Tensor | None:
        """The mask, on `device`: the one that was given there if there are several."""
        if device in self._given:
            return self._given[device]
        return next((mask.to(device) for mask in self._given.values()), None)


class FrameMasks:
    """What the modules around one site say about its tokens, innermost first.

    Args:
        masks: theirs.
        resampled: whether tokens may be fewer than a mask says, as where the front end of a speech model shortens its input.
        layer: the layer of a stack around the site.
    """

    def __init__(self, masks: Sequence[FrameMask], resampled: bool, layer: nn.Module | None = None) -> None:
        self._masks, self._resampled, self._warned = masks, resampled, False
        self._layer, self._input = layer, 0
        # By the address of what the layer was given, and as long as that lives: another pass may be given the same address.
        self._passes: dict[int, tuple[StorageWeakRef, list[Tensor | None]]] = {}
        self._again: list[Tensor | None] | None = None
        self._entries = {layer}  # and the modules in the layer that take the layer's input

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward pre-hook of the layer around the site and of the modules right inside it.

        Keeps the masks of every pass for gradient checkpointing: a layer that is checkpointed runs again in the backward pass,
        when another pass of the model may have left its masks. The input of the layer is then the same memory.
        """
        if torch.compiler.is_compiling():
            return
        if not (module.training or torch.is_grad_enabled()):  # no backward pass will ask
            self.forget()
            return
        given = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(given, Tensor):
            return
        place = given.data_ptr()
        if torch._C._current_graph_task_id() != -1:  # in a backward pass
            if module in self._entries:
                storage, masks = self._passes.get(place, (None, None))
                self._again = None if storage is None or storage.expired() else masks
            return
        self._again = None
        if module is self._layer:
            masks = [known.on(given.device) for known in self._masks]
            self._input, self._passes[place] = place, (StorageWeakRef(given.untyped_storage()), masks)
            if len(self._passes) > MOST_PASSES:
                del self._passes[next(iter(self._passes))]
        elif place == self._input:
            self._entries.add(module)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model has seen no pass, and a weak reference to a storage must not be copied."""
        return {**vars(self), "_passes": {}, "_again": None}

    def forget(self) -> None:
        """Ends a step."""
        self._passes.clear()
        self._again = None

    def at(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """[batch, frames] bool for tokens of this shape, True where one counts, or None if every token does."""
        batch, frames = shape
        masks = (known.on(device) for known in self._masks) if self._again is None else self._again
        given = [mask for mask in masks if mask is not None]
        for mask in given:
            if mask.shape == (batch, frames):
                return mask.bool()
        for mask in given:
            if self._resampled and mask.ndim == 2 and mask.shape[0] == batch and mask.shape[1] >= frames > 0:
                return _at_rate(frames, mask)
        if given and not self._warned and not torch.compiler.is_compiling():
            logger.warning(
                "attention_mask of shape %s cannot be related to %d frames of %d samples: padded frames are counted",
                tuple(given[-1].shape),
                frames,
                batch,
            )
            self._warned = True
        return None


def frame_masks(model: nn.Module, names: Sequence[str]) -> tuple[list[FrameMasks], list[tuple[nn.Module, Any]]]:
    """What tells the tokens of the sites at the paths `names`, and the hooks needed for that: which module takes which.

    The mask of the user's batch seldom reaches a feed-forward layer as it was; a speech model, for one, turns it from samples
    into frames. So a site listens to its whole model of transformers, and to the parts of that down to its stack of layers.
    The layers themselves are given masks in the form that attention wants.
    """
    hooks: dict[nn.Module, FrameMask] = {}
    chains, layers = [], []
    for name in names:
        modules = list(_around(model, name))
        takers = [module for module in reversed(modules) if _takes_mask(module)]
        for module in takers:
            hooks.setdefault(module, FrameMask(module))
        resampled = any(hasattr(module, "_get_feat_extract_output_lengths") for module in modules)
        layer = _layer_around(model, name) if takers else None
        chains.append(FrameMasks([hooks[module] for module in takers], resampled, layer))
        layers += [] if layer is None else [(part, chains[-1]) for part in (layer, *layer.children())]
    return chains, [*hooks.items(), *layers]


def _layer_around(model: nn.Module, name: str) -> nn.Module | None:
    """The layer of a stack in which the site at `name` is: what gradient checkpointing runs again."""
    module: nn.Module = model
    for part in name.split(".") if name else []:
        parent, module = module, getattr(module, part)
        if isinstance(parent, nn.ModuleList):
            return module
    return None


def _around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules whose tokens are those of the site at `name`, outermost first."""
    path = [model]
    for part in name.split(".") if name else []:
        path.append(getattr(path[-1], part))
        if isinstance(path[-1], nn.ModuleList):
            path.pop()
            break
    start = max((depth for depth, module in enumerate(path) if _is_whole(module)), default=0)
    for depth in range(start - 1, -1, -1):  # the encoder's mask may stop at the model around it
        around: Any = path[depth]
        if _is_whole(around) and around.get_encoder() is path[start]:
            start = depth
    yield from path[start:]


def _is_whole(module: nn.Module) -> bool:
    return hasattr(module, "main_input_name") and hasattr(module, "get_encoder")


def _takes_mask(module: nn.Module) -> bool:
    parameters = _parameters(module).values()
    return any(p.name == "attention_mask" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(type(module).forward).parameters)
    parameters.pop("self", None)
    return parameters


def _at_rate(frames: int, mask: Tensor) -> Tensor:
    """A mask [batch, T] at the rate of [batch, frames]: each token stands for as many places of the mask as fit."""
    lengths = mask.sum(1) // (mask.shape[1] // frames)
    return torch.arange(frames, device=mask.device) < lengths.unsqueeze(1)
