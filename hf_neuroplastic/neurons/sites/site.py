"""What a hidden neuron is: the tensors that hold something of it, and which dimension of each counts the neurons.

Whoever operates on neurons walks these lists and needs to know no kinds of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from neuroplastic_kernels import Fill

Ability = Literal["be silenced", "change its width", "be split", "be scaled", "be parted"]


class Share(NamedTuple):
    """Where a tensor holds something of every neuron of a site.

    Along `dim` it has `blocks` blocks of N entries, and entry i of number `block` is neuron i's.
    """

    tensor: Tensor
    dim: int = 0
    fresh: Fill = "zero"  # what becomes of a new neuron's entries where none are drawn; a silent slot's are 0
    block: int = 0
    blocks: int = 1

    @property
    def part(self) -> Tensor:
        """The neurons' part of the tensor: a detached view, with N entries along `dim`."""
        return self.block_of(self.tensor.detach(), self.dim)

    def block_of(self, tensor: Tensor, dim: int) -> Tensor:
        """The neurons' part of a tensor laid out like this one, such as its optimizer state, whose `dim` counts them."""
        return tensor if self.blocks == 1 else tensor.chunk(self.blocks, dim)[self.block]


class IncomingShares(NamedTuple):
    """One set of the neurons' incoming weights, and their biases: dimension 0 of both counts the neurons."""

    weight: Share
    bias: Share | None


class Fold(NamedTuple):
    """Where the mean output of a leaving neuron goes: `sign` * weight[:, i] * mean is added to `into`."""

    weight: Tensor  # [M, N, ...]; what lies beyond is summed: the taps of a kernel
    into: Tensor  # [M]
    sign: float = 1.0


@dataclass(frozen=True, eq=False)
class Site:
    """One layer of hidden neurons: here a feed-forward layer, `up` (Linear D -> N), an activation, `down` (Linear N -> D).

    Neuron i is row i of `up.weight`, `up.bias[i]` and column i of `down.weight`; with a `gate`, row i of that as well, and its
    output is activation(gate(x)) * up(x). Other kinds say in their own class what a neuron of theirs is.

    `name` is the path of the module that holds the site (of `up` in a Sequential).
    """

    name: str
    up: Any  # Linear; other kinds: Conv1d, Conv2d or GRU
    activation: nn.Module
    down: Any  # Linear, Conv1d or Conv2d
    gate: nn.Linear | None = None
    width_key: str | None = None  # where configurations hold the width, if they do
    configs: tuple[Any, ...] = ()  # configurations of the modules around the site that hold its width, innermost first
    chained: bool = False  # `up` is another site's `down`, or the other way round
    follows: bool = False  # `up` is another site's `down`
    container: nn.Module | None = None  # the module that computes this site and nothing else, if there is one
    dropout: nn.Module | None = None
    output_dropout: nn.Module | None = None
    watch: Literal["output", "input"] = "output"  # whether the neurons are what `watched` gives or what it takes
    neuron_dim: int = -1  # which dimension of that tensor counts the neurons

    @property
    def watched(self) -> nn.Module:
        """The module at which the neurons' outputs are seen (see `watch`)."""
        return self.activation if self.gate is None else self.down

    @property
    def width(self) -> int:
        """N, the number of hidden neurons."""
        return self.up.out_features

    @property
    def inputs(self) -> int:
        """D, the number of inputs."""
        return self.up.in_features

    @property
    def incoming(self) -> tuple[IncomingShares, ...]:
        """The weights that are drawn for a new neuron."""
        return tuple(incoming_of(layer) for layer in (self.up, self.gate) if layer is not None)

    @property
    def outgoing(self) -> tuple[Share, ...]:
        """The weights that carry a neuron's output on: 0 for a new neuron."""
        return (Share(self.down.weight, 1),)

    @property
    def others(self) -> tuple[Share, ...]:
        """Everything else that belongs to single neurons."""
        return ()

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Where the mean output of a leaving neuron goes, other than through a Linear `down` into its bias."""
        return ()

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The modules whose weights make the neurons."""
        return (self.up, self.down) if self.gate is None else (self.up, self.gate, self.down)

    def declare_width(self, width: int) -> None:
        """Tells the modules how many neurons their tensors hold now."""
        self.up.out_features = self.down.in_features = width
        if self.gate is not None:
            self.gate.out_features = width

    def refusal(self, ability: Ability) -> str | None:
        """Why the site's neurons cannot `ability`, or None if they can."""
        if ability in ("be silenced", "change its width") and not silences(self):
            return "its activation does not map 0 to 0"
        if ability == "be parted" and self.chained:
            return "one of its layers belongs to another site as well"
        return None

    @property
    def shares(self) -> tuple[Share, ...]:
        """Every tensor that holds something of the neurons."""
        incoming = (share for pair in self.incoming for share in pair if share is not None)
        return (*incoming, *self.others, *self.outgoing)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The parameters of the incoming and outgoing weights, each once."""
        shares = (*(weight for weight, _ in self.incoming), *self.outgoing)
        return tuple({id(share.tensor): share.tensor for share in shares}.values())

    @property
    def trainable(self) -> bool:
        """Whether new neurons could learn: no weight is frozen."""
        return all(weight.requires_grad for weight in self.weights)


def incoming_of(layer: Any) -> IncomingShares:
    """The rows of a Linear, or the output channels of a convolution."""
    return IncomingShares(Share(layer.weight), None if layer.bias is None else Share(layer.bias))


def silences(site: Site) -> bool:
    """Whether a neuron with zero weights is silent: its activation maps 0 to 0, or a gate multiplies a projection of 0."""
    return site.gate is not None or site.activation(torch.zeros(1)).item() == 0.0


def inert_slots(site: Site) -> Tensor:
    """[N] bool: slots in reserve, all of whose parameters are zero, where this silences a neuron."""
    inert = torch.ones(site.width, dtype=torch.bool, device=site.weights[0].device)
    if site.refusal("be silenced"):
        return ~inert
    for share in site.shares:
        if isinstance(share.tensor, nn.Parameter):
            inert &= ~share.part.movedim(share.dim, 0).reshape(site.width, -1).any(dim=1)
    return inert
