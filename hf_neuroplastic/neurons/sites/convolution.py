"""Convolutions in a row: every output channel of the first is a neuron.

Also the residual blocks of transformers' ResNet, whose Sequentials hold convolution, normalization and activation as blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .requirements import require_whole
from .sequential import ELEMENTWISE, Part, refuse_in_place
from .site import Ability, Fold, IncomingSlices, NeuronSlice, Site, incoming_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, eq=False)
class ConvolutionSite(Site):
    """Convolution, optional BatchNorm, activation, convolution.

    Neuron i is output channel i of `up`, the i-th entries of the BatchNorm's vectors, and input channel i of `down`. Its mean
    output goes where it comes through a whole kernel: at zero-padded borders, fewer taps carried it, and there the output
    changes. Without a bias to take it, the running mean of a BatchNorm behind `down` does, which only evaluation uses: in
    training the BatchNorm takes the mean out by itself.
    """

    neuron_dim: int = 1
    norm: _BatchNorm | None = None  # between `up` and the activation
    next_norm: _BatchNorm | None = None  # right behind `down`
    fixed: str | None = None  # why the width cannot change

    @property
    def width(self) -> int:
        return self.up.out_channels

    @property
    def inputs(self) -> int:
        return self.up.in_channels

    @property
    def incoming(self) -> tuple[IncomingSlices, ...]:
        return (incoming_of(self.up),)

    @property
    def others(self) -> tuple[NeuronSlice, ...]:
        if self.norm is None:
            return ()
        vectors: tuple[Tensor | None, ...] = (
            self.norm.weight,
            self.norm.bias,
            self.norm.running_mean,
            self.norm.running_var,
        )
        return tuple(NeuronSlice(vector, fill="mean") for vector in vectors if vector is not None)

    @property
    def folds(self) -> tuple[Fold, ...]:
        if self.down.bias is not None:
            return (Fold(self.down.weight, self.down.bias),)
        if self.next_norm is not None and self.next_norm.running_mean is not None:
            return (Fold(self.down.weight, self.next_norm.running_mean, -1.0),)
        return ()

    def declare_width(self, width: int) -> None:
        self.up.out_channels = self.down.in_channels = width
        if self.norm is not None:
            self.norm.num_features = width

    def refusal(self, ability: Ability) -> str | None:
        if ability == "be split":
            return "its neurons are channels of convolutions"
        if ability == "be scaled" and self.norm is not None:
            return "BatchNorm takes out any scale of the weights before it"
        if ability == "change its width" and self.fixed:
            return self.fixed
        return super().refusal(ability)


def convolution_sites(parts: list[Part], sequential: nn.Sequential, name: str) -> Iterator[Site]:
    """Convolution, optional BatchNorm, activation, convolution in a row; Dropout may stand before the second convolution."""
    for start, up in enumerate(parts):
        rest = [part.module for part in parts[start + 1 :]]
        norm = rest.pop(0) if rest and isinstance(rest[0], _BatchNorm) else None
        if len(rest) < 2 or not isinstance(rest[0], ELEMENTWISE) or not _feeds(up.module, norm, rest[1]):
            continue
        refuse_in_place(name, sequential)
        for layer in (up.module, rest[1]):
            require_whole(up.path, layer)
        next_norm = rest[2] if len(rest) > 2 and isinstance(rest[2], _BatchNorm) else None
        yield ConvolutionSite(
            up.path, up.module, rest[0], rest[1], norm=norm, next_norm=next_norm, fixed=_fixed(up.block)
        )


def unsuitable(parts: list[Part]) -> Iterator[str]:
    """Why convolutions in `parts` are in no site."""
    for start, part in enumerate(parts):
        if not isinstance(part.module, CONVOLUTIONS):
            continue
        if not _is_plain(part.module):
            yield f"{part.path!r} is a convolution in groups, or one whose weight is recomputed from other parameters"
        behind = [each.module for each in parts[start + 1 :] if not isinstance(each.module, _BatchNorm)]
        if len(behind) > 1 and isinstance(behind[0], ELEMENTWISE) and not isinstance(behind[1], CONVOLUTIONS):
            yield (
                f"{part.path!r} is a convolution with a {type(behind[1]).__name__} behind the activation, where DropIn knows a "
                "convolution only"
            )


def _feeds(up: nn.Module, norm: _BatchNorm | None, down: nn.Module) -> bool:
    """Whether the output channels of `up` can be the input channels of `down`."""
    if not (_is_plain(up) and _is_plain(down)) or type(up) is not type(down):
        return False
    return up.out_channels == down.in_channels and (norm is None or norm.num_features == up.out_channels)


def _is_plain(layer: Any) -> bool:
    return type(layer) in CONVOLUTIONS and layer.groups == 1 and isinstance(layer.weight, nn.Parameter)


def _fixed(block: str | None) -> str | None:
    return None if block is None else f"no configuration could describe a {block} of another width"
