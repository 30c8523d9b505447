"""Rebirth of neurons: fresh incoming weights, silent outgoing weights, initial optimizer state."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.philox import normal, uniform
from .neurons import Incoming, Init, NeuronTensors, StateSlice, templates

SPLIT_WORD = 1  # word of the random counter: what is drawn


def weight_word(entry: int) -> int:
    """Word of the random counter: the weights of `incoming[entry]`."""
    return 0 if entry == 0 else 2 + entry


@torch.no_grad()
def neuron_reinit(
    sites: Sequence[NeuronTensors],
    *,
    init: Init = "normal",
    std: float = 0.01,
    outgoing: str = "zero",
    seed: int = 0,
    event: int = 0,
    workspace: dict[Any, Any] | None = None,
) -> None:
    """Gives the masked neurons of every site new weights and initial optimizer state, in place, site after site.

    For a masked neuron i, in this order:
        1. its mean contribution mean_output[i] * down_weight[:, i] is added to down_bias (outgoing "zero" only), so that a
           neuron whose output was constant leaves without a trace;
        2. for each of `incoming`, weight[i] and bias[i] get fresh values by `init`:
           "normal"  N(0, std), bias 0;
           "fan_in"  N(0, 1 / (3 D)), the variance of torch.nn.Linear's default, bias 0 (D inputs times size of the kernel);
           "layer"   normal with the mean and deviation of the models' rows, bias their mean bias;
           "split"   a copy of donors[i], whose outgoing column is shared between the two (below);
           "zero"    zeros: the neuron falls silent;
        3. down_weight[:, i] becomes zero ("keep": stays). With "split" it becomes f * c and the donor's becomes c - f * c,
           c the donor's column and f uniform in [0.4, 0.6) per element: the output is preserved, and unequal shares keep
           the twins from receiving equal gradients for ever;
        4. the entries of each state slice become 0 or the mean over the models. Adam's bias correction is spent late in
           training, so a zeroed second moment would make the first steps (1 - b1) / sqrt(1 - b2) times too long.

    The models are the survivors, a sample of them in wide layers: see `neurons.templates`.

    Randomness is counter-based (see philox): element d of row i of site s at event e always gets the same number for a seed.
    Everything outside the masked slices, the donors' columns and down_bias keeps its bits.

    Reads the mask back to find the chosen neurons (free on CPU, a synchronisation on a GPU). `workspace` is for the fused
    form.

    Raises:
        ValueError: init="split" without donors or without down_weight; nothing is written then.
    """
    if init == "split":
        check_split(sites)
    for tensors in sites:
        chosen = tensors.mask.nonzero().squeeze(1)
        if chosen.numel() == 0:
            continue
        modelled = templates(tensors.survivors).nonzero().squeeze(1)
        if outgoing == "zero":
            _fold_mean_output(tensors, chosen)
        if init == "split":
            _split(tensors, chosen, seed, event)
        else:
            for entry, up in enumerate(tensors.incoming):
                index = _element_index(chosen, math.prod(up.weight.shape[1:]))
                noise = normal(seed, index, event, tensors.site, weight_word(entry))
                _fresh_rows(up, chosen, modelled, noise, init, std)
            if outgoing == "zero" and tensors.down_weight is not None:
                tensors.down_weight[:, chosen] = 0.0
        for state in tensors.state:
            _reset_state(state, chosen, modelled)


def check_split(sites: Sequence[NeuronTensors]) -> None:
    """Raises ValueError for a site that cannot be split."""
    for tensors in sites:
        if tensors.donors is None:
            raise ValueError(
                'init="split" needs donors: [N] int64, the surviving neuron each chosen one is split from; got None'
            )
        if tensors.down_weight is None:
            raise ValueError(
                'init="split" divides outgoing weights between two neurons and needs down_weight: [M, N]; got None, use '
                "another init"
            )


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _fold_mean_output(tensors: NeuronTensors, chosen: Tensor) -> None:
    if tensors.down_weight is None or tensors.down_bias is None or tensors.mean_output is None:
        return
    dtype = _accumulation_dtype(tensors.down_weight)
    contribution = tensors.down_weight[:, chosen].to(dtype) @ tensors.mean_output[chosen].to(dtype)
    tensors.down_bias.add_(contribution)


def _element_index(chosen: Tensor, columns: int) -> Tensor:
    return chosen.unsqueeze(1) * columns + torch.arange(columns, device=chosen.device)


def _fresh_rows(up: Incoming, chosen: Tensor, modelled: Tensor, noise: Tensor, init: Init, std: float) -> None:
    """noise: [chosen, inputs], standard normal."""
    weight, bias = up
    mean, fresh_bias = 0.0, 0.0
    if init == "layer":
        rows = weight[modelled].to(_accumulation_dtype(weight))
        mean, std = float(rows.mean()), float(rows.std(unbiased=False))
        fresh_bias = 0.0 if bias is None else float(bias[modelled].to(rows.dtype).mean())
    elif init == "fan_in":
        std = 1.0 / math.sqrt(3.0 * max(1, noise.shape[1]))
    elif init == "zero":
        std = 0.0
    weight[chosen] = (mean + std * noise).to(weight.dtype).view(chosen.numel(), *weight.shape[1:])
    if bias is not None:
        bias[chosen] = fresh_bias


def _split(tensors: NeuronTensors, chosen: Tensor, seed: int, event: int) -> None:
    down, donors = tensors.down_weight, tensors.donors
    assert down is not None  # check_split
    assert donors is not None
    donors = donors[chosen]
    for tensor in (part for up in tensors.incoming for part in up if part is not None):
        tensor[chosen] = tensor[donors]
    share = 0.4 + 0.2 * uniform(seed, _element_index(chosen, down.shape[0]), event, tensors.site, SPLIT_WORD).T
    column = down[:, donors]
    given = (column * share).to(down.dtype)
    down[:, chosen] = given
    down[:, donors] = column - given


def _reset_state(state: StateSlice, chosen: Tensor, modelled: Tensor) -> None:
    tensor, dim, fill = state
    if fill == "zero":
        tensor.index_fill_(dim, chosen, 0.0)
        return
    source = tensor.index_select(dim, modelled).to(_accumulation_dtype(tensor))
    mean = source.mean(dim, keepdim=True).to(tensor.dtype)
    shape = [chosen.numel() if d == dim else size for d, size in enumerate(tensor.shape)]
    tensor.index_copy_(dim, chosen, mean.expand(shape))
