"""The modules of a torch.nn.Sequential in the order of calls, among which sites are looked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

# Elementwise, without parameters: what may stand between the two layers of a site in a torch.nn.Sequential.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish,
)  # fmt: skip
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
# Modules that call their parts in this order and do no more: regular expression for the class name, and the parts.
BLOCKS = {r"ResNetConvLayer": ("convolution", "normalization", "activation")}


class Part(NamedTuple):
    """A module that a Sequential calls, itself or through a block."""

    path: str  # of the module, or of the block it begins
    module: Any
    block: str | None = None  # class name of the block it belongs to


def parts_of(name: str, sequential: nn.Sequential) -> list[Part]:
    """What `sequential`, at the path `name`, calls one after the other, without Dropout."""
    # Not named_children(): it would hide a module used twice.
    called = [(f"{name}.{key}" if name else key, module) for key, module in sequential._modules.items()]
    return [part for path, module in called for part in _parts(path, module) if not isinstance(part.module, DROPOUT)]


def _parts(path: str, module: Any) -> Iterator[Part]:
    kind = type(module).__name__
    for pattern, names in BLOCKS.items():
        if re.fullmatch(pattern, kind):
            yield from (Part(path, getattr(module, name), kind) for name in names)
            return
    yield Part(path, module)


def refuse_in_place(name: str, sequential: nn.Sequential) -> None:
    """Raises ValueError if a Dropout of `sequential` writes over the activation's output."""
    if any(isinstance(part, DROPOUT) and part.inplace for part in sequential._modules.values()):
        raise ValueError(f"{name or 'the model'!r} overwrites what DropIn observes: set inplace=False on its Dropout")
