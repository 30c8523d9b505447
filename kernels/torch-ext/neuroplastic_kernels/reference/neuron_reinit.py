"""Rebirth of neurons: fresh incoming weights, silent outgoing weights, initial optimizer state."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..neurons import Init, NeuronTensors, StateSlice
from .philox import normal, uniform

UP_WEIGHT, SPLIT_SHARE = 0, 1  # word of the random counter: which tensor is drawn


@torch.no_grad()
def neuron_reinit(
    sites: Sequence[NeuronTensors],
    *,
    init: Init = "normal",
    std: float = 0.01,
    outgoing: str = "zero",
    seed: int = 0,
    event: int = 0,
) -> None:
    """Gives the masked neurons of every site new weights and initial optimizer state, in place.

    For a masked neuron i, in this order:
        1. its mean contribution mean_output[i] * down_weight[:, i] is added to down_bias (outgoing "zero" only), so that a
           neuron whose output was constant leaves without a trace;
        2. up_weight[i], up_bias[i] get fresh values by `init`:
           "normal"  N(0, std), bias 0;
           "fan_in"  N(0, 1 / (3 D)), the variance of torch.nn.Linear's default, bias 0;
           "layer"   normal with the mean and deviation of the survivors' rows, bias their mean bias;
           "split"   a copy of donors[i], whose outgoing column is shared between the two (below);
           "zero"    zeros: the neuron falls silent;
        3. down_weight[:, i] becomes zero ("keep": stays). With "split" it becomes f * c and the donor's becomes c - f * c,
           c the donor's column and f uniform in [0.4, 0.6) per element: the output is preserved, and unequal shares keep
           the twins from receiving equal gradients for ever;
        4. the entries of each state slice become 0 or the mean over the survivors. Adam's bias correction is spent late in
           training, so a zeroed second moment would make the first steps (1 - b1) / sqrt(1 - b2) times too long.

    Randomness is counter-based (see philox): element (i, d) of site s at event e always gets the same number for a seed.
    Everything outside the masked slices, the donors' columns and down_bias keeps its bits.

    Reads the mask back to find the chosen neurons (free on CPU, a synchronisation on a GPU).
    """
    for tensors in sites:
        chosen = tensors.mask.nonzero().squeeze(1)
        if chosen.numel() == 0:
            continue
        if outgoing == "zero":
            _fold_mean_output(tensors, chosen)
        if init == "split":
            _split(tensors, chosen, seed, event)
        else:
            _fresh_rows(tensors, chosen, init, std, seed, event)
            if outgoing == "zero":
                tensors.down_weight[:, chosen] = 0.0
        for state in tensors.state:
            _reset_state(state, chosen, tensors.survivors)


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _fold_mean_output(tensors: NeuronTensors, chosen: Tensor) -> None:
    if tensors.down_bias is None or tensors.mean_output is None:
        return
    dtype = _accumulation_dtype(tensors.down_weight)
    contribution = tensors.down_weight[:, chosen].to(dtype) @ tensors.mean_output[chosen].to(dtype)
    tensors.down_bias.add_(contribution)


def _element_index(chosen: Tensor, columns: int) -> Tensor:
    return chosen.unsqueeze(1) * columns + torch.arange(columns, device=chosen.device)


def _fresh_rows(tensors: NeuronTensors, chosen: Tensor, init: Init, std: float, seed: int, event: int) -> None:
    weight, bias = tensors.up_weight, tensors.up_bias
    fan_in = weight.shape[1]
    mean, fresh_bias = 0.0, 0.0
    if init == "layer":
        kept = tensors.survivors if bool(tensors.survivors.any()) else torch.ones_like(tensors.survivors)
        rows = weight[kept].to(_accumulation_dtype(weight))
        mean, std = float(rows.mean()), float(rows.std(unbiased=False))
        fresh_bias = 0.0 if bias is None else float(bias[kept].to(rows.dtype).mean())
    elif init == "fan_in":
        std = 1.0 / math.sqrt(3.0 * fan_in)
    elif init == "zero":
        std = 0.0
    noise = normal(seed, _element_index(chosen, fan_in), event, tensors.site, UP_WEIGHT)
    weight[chosen] = (mean + std * noise).to(weight.dtype)
    if bias is not None:
        bias[chosen] = fresh_bias


def checked_donors(tensors: NeuronTensors) -> Tensor:
    """The donors of a site. Raises ValueError if there are none."""
    if tensors.donors is None:
        raise ValueError(
            'init="split" needs donors: [N] int64, the surviving neuron each chosen one is split from; got None'
        )
    return tensors.donors


def _split(tensors: NeuronTensors, chosen: Tensor, seed: int, event: int) -> None:
    donors = checked_donors(tensors)[chosen]
    tensors.up_weight[chosen] = tensors.up_weight[donors]
    if tensors.up_bias is not None:
        tensors.up_bias[chosen] = tensors.up_bias[donors]
    down = tensors.down_weight
    share = 0.4 + 0.2 * uniform(seed, _element_index(chosen, down.shape[0]), event, tensors.site, SPLIT_SHARE).T
    column = down[:, donors]
    given = (column * share).to(down.dtype)
    down[:, chosen] = given
    down[:, donors] = column - given


def _reset_state(state: StateSlice, chosen: Tensor, survivors: Tensor) -> None:
    tensor, dim, fill = state
    if fill == "zero":
        tensor.index_fill_(dim, chosen, 0.0)
        return
    kept = survivors.nonzero().squeeze(1)
    source = tensor.index_select(dim, kept) if kept.numel() else tensor
    mean = source.to(_accumulation_dtype(tensor)).mean(dim, keepdim=True).to(tensor.dtype)
    shape = [chosen.numel() if d == dim else size for d, size in enumerate(tensor.shape)]
    tensor.index_copy_(dim, chosen, mean.expand(shape))
