"""What a hidden neuron is: its slices of a layer's tensors. Code that changes neurons needs no other knowledge of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from neuroplastic_kernels import Fill, add_over_shards, part_of

Ability = Literal["be silenced", "change its width", "be split", "be scaled", "be separated"]


class NeuronSlice(NamedTuple):
    """The neurons' slices of a tensor: neuron i has entry i, along `dim`, of one of `blocks` equal blocks."""

    tensor: Tensor
    dim: int = 0
    fill: Fill = "zero"  # what a new neuron's entries become where none are drawn; a silent slot's become 0
    block: int = 0
    blocks: int = 1

    @property
    def view(self) -> Tensor:
        """A detached view of the neurons' block, with N entries along `dim`."""
        return self.block_of(self.tensor.detach(), self.dim)

    def block_of(self, tensor: Tensor, dim: int) -> Tensor:
        """The neurons' block of a tensor laid out like this one, such as optimizer state, with the neurons along `dim`."""
        return tensor if self.blocks == 1 else tensor.chunk(self.blocks, dim)[self.block]


class IncomingSlices(NamedTuple):
    """One set of the neurons' incoming weights and biases, with the neurons along dimension 0. A gated neuron has two sets."""

    weight: NeuronSlice
    bias: NeuronSlice | None


class Fold(NamedTuple):
    """Where the mean output of a removed neuron i goes: `sign` * weight[:, i] * mean is added to `into`."""

    weight: Tensor  # [M, N, ...]; a kernel's taps are summed
    into: Tensor  # [M]
    sign: float = 1.0


@dataclass(frozen=True, eq=False)
class Site:
    """One layer of hidden neurons: here a feed-forward layer, `up` (Linear D -> N), an activation, `down` (Linear N -> D).

    Neuron i is row i of `up.weight`, `up.bias[i]` and column i of `down.weight`. With a `gate`, it is row i of the gate as
    well, and its output is activation(gate(x)) * up(x). Subclasses say what a neuron of another kind of layer is.

    `name` is the path of the module that holds the site (of `up` in a Sequential).
    """

    name: str
    up: Any  # Linear; other kinds: Conv1d, Conv2d or GRU
    activation: nn.Module
    down: Any  # Linear, Conv1d or Conv2d
    gate: nn.Linear | None = None
    width_key: str | None = None  # the attribute of a configuration that holds the width, if any
    configs: tuple[Any, ...] = ()  # configurations of the modules around the site that hold its width, innermost first
    chained: bool = False  # `up` is another site's `down`, or the other way round
    follows: bool = False  # `up` is another site's `down`
    container: nn.Module | None = None  # the module that computes this site and nothing else, if any
    dropout: nn.Module | None = None
    output_dropout: nn.Module | None = None
    watch: Literal["output", "input"] = (
        "output"  # whether the neurons' outputs are the output of `watched` or its input
    )
    neuron_dim: int = -1  # the dimension of that tensor which counts the neurons

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
    def incoming(self) -> tuple[IncomingSlices, ...]:
        """The weights that are drawn for a new neuron."""
        return tuple(incoming_of(layer) for layer in (self.up, self.gate) if layer is not None)

    @property
    def outgoing(self) -> tuple[NeuronSlice, ...]:
        """The weights on the neurons' outputs: 0 for a new neuron."""
        return (NeuronSlice(self.down.weight, 1),)

    @property
    def others(self) -> tuple[NeuronSlice, ...]:
        """Everything else that belongs to single neurons."""
        return ()

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Where the mean output of a removed neuron goes, other than through a Linear `down` into its bias."""
        return ()

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The modules that hold the neurons' weights."""
        return (self.up, self.down) if self.gate is None else (self.up, self.gate, self.down)

    def declare_width(self, width: int) -> None:
        """Sets the modules' attributes to the number of neurons that their tensors hold now."""
        self.up.out_features = self.down.in_features = width
        if self.gate is not None:
            self.gate.out_features = width

    def refusal(self, ability: Ability) -> str | None:
        """Why the site's neurons cannot `ability`, or None if they can."""
        if ability in ("be silenced", "change its width") and not silences(self):
            return "its activation does not map 0 to 0"
        if ability == "be separated" and self.chained:
            return "one of its layers belongs to another site as well"
        return None

    @property
    def slices(self) -> tuple[NeuronSlice, ...]:
        """All slices of the neurons."""
        incoming = (neuron_slice for pair in self.incoming for neuron_slice in pair if neuron_slice is not None)
        return (*incoming, *self.others, *self.outgoing)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The parameters of the incoming and outgoing weights, each once."""
        tensors = [neuron_slice.tensor for neuron_slice in (*(weight for weight, _ in self.incoming), *self.outgoing)]
        return tuple({id(tensor): tensor for tensor in tensors}.values())

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All parameters of the neurons, each once."""
        tensors = [neuron_slice.tensor for neuron_slice in self.slices]
        return tuple({id(tensor): tensor for tensor in tensors if isinstance(tensor, nn.Parameter)}.values())

    @property
    def trainable(self) -> bool:
        """Whether new neurons can learn: no weight is frozen."""
        return all(weight.requires_grad for weight in self.weights)


def incoming_of(layer: Any) -> IncomingSlices:
    """The rows of a Linear, or the output channels of a convolution."""
    return IncomingSlices(NeuronSlice(layer.weight), None if layer.bias is None else NeuronSlice(layer.bias))


def silences(site: Site) -> bool:
    """Whether a neuron with zero weights outputs 0: its activation maps 0 to 0, or a gate multiplies a projection of 0."""
    return site.gate is not None or site.activation.forward(torch.zeros(1)).item() == 0.0  # past hooks


def per_neuron(slices: Sequence[NeuronSlice], measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """For each slice, [N] float32: the sum of `measure` over the entries of each neuron; one all-reduce over shards in all."""
    totals = []
    for neurons in slices:
        part = part_of(neurons.tensor.detach())
        block = neurons.block_of(part.tensor, neurons.dim)
        held = measure(block.movedim(neurons.dim, 0).flatten(1) if block.ndim > 1 else block.unsqueeze(1)).sum(1)
        total = torch.zeros(neurons.tensor.shape[neurons.dim] // neurons.blocks, device=held.device)
        total[part.span(neurons.dim) if neurons.blocks == 1 else slice(None)] = held.float()
        totals.append(total)
    add_over_shards([(total, neurons.tensor) for total, neurons in zip(totals, slices, strict=True)])
    return totals


def inert_slots(site: Site) -> Tensor:
    """[N] bool: slots in reserve, whose parameters are all 0; none where zero parameters do not silence a neuron."""
    return all_inert_slots([site])[0]


def all_inert_slots(sites: Sequence[Site]) -> list[Tensor]:
    """`inert_slots` of each site."""
    able = [site.refusal("be silenced") is None for site in sites]
    inert = [
        torch.full((site.width,), yes, device=site.weights[0].device) for site, yes in zip(sites, able, strict=True)
    ]
    learned = [
        (slots, each)
        for site, yes, slots in zip(sites, able, inert, strict=True)
        for each in site.slices
        if yes and isinstance(each.tensor, nn.Parameter)
    ]
    filled = per_neuron([each for _, each in learned], lambda entries: entries != 0)
    for (slots, _), count in zip(learned, filled, strict=True):
        slots &= count == 0
    return inert
