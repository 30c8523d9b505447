"""The tensors of a site's neurons, as the surgery ops take them. N hidden neurons, D inputs, M outputs."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Init = Literal["normal", "fan_in", "layer", "split", "zero"]
Fill = Literal["zero", "mean"]

GROUP = 8  # neighbours sampled together: 32 bytes of a float32 row over neurons, the least that a GPU's memory gives
SAMPLED_GROUPS = 16
SAMPLED_WHOLE = 256  # layers of at most this many neurons are no sample but all of it


class Incoming(NamedTuple):
    """One set of incoming rows. A neuron has several where it is gated: one row in each set."""

    weight: Tensor  # [N, D...]: further dimensions are a convolution's
    bias: Tensor | None = None  # [N]


class StateSlice(NamedTuple):
    """A tensor whose dimension `dim` counts the neurons (it has N entries): optimizer state, or weights beside those below."""

    tensor: Tensor
    dim: int
    fill: Fill  # what a reborn neuron's entries become: 0, or the mean over the surviving neurons


class NeuronTensors(NamedTuple):
    """One site, and which of its neurons to give new weights."""

    incoming: tuple[Incoming, ...]
    down_weight: Tensor | None  # [M, N]; None: outgoing weights are slices of `state`, nothing is folded, nothing split
    down_bias: Tensor | None  # [M]
    mask: Tensor  # [N] bool: the neurons to reinitialise
    survivors: Tensor  # [N] bool: the neurons that stay, on which new ones are modelled
    mean_output: Tensor | None  # [N] float32: mean output of each neuron, folded into down_bias when it goes
    donors: Tensor | None  # [N] int64, init="split" only: which surviving neuron a chosen one splits; distinct donors
    state: tuple[StateSlice, ...]
    site: int  # word of the random counter: the same site gets the same numbers in any list

    def written(self) -> Iterator[Tensor]:
        """Every tensor that surgery may write to."""
        for tensor in (*(part for up in self.incoming for part in up), self.down_weight, self.down_bias):
            if tensor is not None:
                yield tensor
        for state in self.state:
            yield state.tensor


def sample_groups(neurons: int) -> tuple[int, int]:
    """(groups, taken): a layer has so many groups of GROUP neighbours; group k * groups // taken is sampled for k < taken."""
    if neurons <= SAMPLED_WHOLE:
        groups = -(-neurons // GROUP)
        return groups, groups
    return neurons // GROUP, SAMPLED_GROUPS


def templates(survivors: Tensor) -> Tensor:
    """[N] bool: the neurons whose mean and deviation new ones are given. survivors: [N] bool.

    All survivors in layers of at most SAMPLED_WHOLE neurons. In wider ones a sample, since reading every survivor's weights
    and optimizer state would cost far more than writing the few new ones: the survivors among SAMPLED_GROUPS groups of GROUP
    neighbours, spread evenly. Where a sample has no survivor all survivors count, and where nobody survives all neurons.
    Does not wait for the device.
    """
    neurons = survivors.numel()
    groups, taken = sample_groups(neurons)
    first = torch.arange(taken, device=survivors.device) * groups // max(taken, 1) * GROUP
    sampled = torch.zeros(neurons + GROUP, dtype=torch.bool, device=survivors.device)
    sampled[first.unsqueeze(1) + torch.arange(GROUP, device=survivors.device)] = True
    sampled = sampled[:neurons] & survivors
    return torch.where(sampled.any(), sampled, survivors | ~survivors.any())
