"""The tensors of a site's neurons, as the surgery ops take them. N hidden neurons, D inputs, M outputs."""

from typing import Literal, NamedTuple

from torch import Tensor

Init = Literal["normal", "fan_in", "layer", "split", "zero"]
Fill = Literal["zero", "mean"]


class StateSlice(NamedTuple):
    """A tensor of optimizer state whose dimension `dim` counts the neurons (it has N entries)."""

    tensor: Tensor
    dim: int
    fill: Fill  # what a reborn neuron's entries become: 0, or the mean over the surviving neurons


class NeuronTensors(NamedTuple):
    """One site, and which of its neurons to give new weights."""

    up_weight: Tensor  # [N, D]
    up_bias: Tensor | None  # [N]
    down_weight: Tensor  # [M, N]
    down_bias: Tensor | None  # [M]
    mask: Tensor  # [N] bool: the neurons to reinitialise
    survivors: Tensor  # [N] bool: the neurons that stay, on which new ones are modelled
    mean_output: Tensor | None  # [N] float32: mean output of each neuron, folded into down_bias when it goes
    donors: Tensor | None  # [N] int64, init="split" only: which surviving neuron a chosen one splits; distinct donors
    state: tuple[StateSlice, ...]
    site: int  # word of the random counter: the same site gets the same numbers in any list

    def written(self) -> tuple[Tensor, ...]:
        """Every tensor that surgery may write to."""
        own = (self.up_weight, self.up_bias, self.down_weight, self.down_bias)
        return (*(tensor for tensor in own if tensor is not None), *(state.tensor for state in self.state))
