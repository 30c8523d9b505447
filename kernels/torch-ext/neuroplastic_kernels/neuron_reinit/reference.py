"""Rebirth of neurons: fresh incoming weights, silent outgoing weights, initial optimizer state."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.philox import normal, uniform
from ..common.shards import Sums, entries, in_turn, is_sharded, part_of, put, split_along, wide
from .neurons import Incoming, Init, NeuronTensors, StateSlice, templates

Words = tuple[int, int, int, int]  # seed, event, site, and what is drawn
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

    Tensors may be split over processes (DTensor, once, along any dimension) if no two sites share one: each process writes
    what it holds, and one all-reduce for each mesh brings together what new neurons take after. Numbers are those of the
    whole tensors, and sums go in float64, so that sharding changes no bit (but for sums on the edge of a rounding).

    Reads the mask back to find the chosen neurons (free on CPU, a synchronisation on a GPU). `workspace` is for the fused
    form.

    Raises:
        ValueError: init="split" without donors or without down_weight; nothing is written then.
    """
    if init == "split":
        check_split(sites)
    rebirths = [_rebirth(tensors, init, std, outgoing, seed, event) for tensors in sites]
    in_turn(rebirths, together=any(is_sharded(tensor) for tensors in sites for tensor in tensors.written()))


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


def _rebirth(tensors: NeuronTensors, init: Init, std: float, outgoing: str, seed: int, event: int) -> Iterator[Sums]:
    """One site: measures, yields the sums that are still to be completed over shards, then writes."""
    chosen = tensors.mask.nonzero().squeeze(1)
    if chosen.numel() == 0:
        return
    modelled = templates(tensors.survivors).nonzero().squeeze(1)
    down, sums = tensors.down_weight, Sums()
    gone = _mean_contribution(tensors, chosen, sums) if outgoing == "zero" else None
    if init == "split":
        assert down is not None  # check_split
        assert tensors.donors is not None
        donors = tensors.donors[chosen]
        copies = [(part, _taken(part, 0, donors, sums)) for up in tensors.incoming for part in up if part is not None]
        columns = _taken(down, 1, donors, sums)
    models = [_row_sums(up, modelled, sums) if init == "layer" else None for up in tensors.incoming]
    apart = [state for state in tensors.state if state.fill == "mean" and split_along(state.tensor, state.dim)]
    totals = {state: _total(state, modelled) for state in apart}
    sums += [(total, state.tensor) for state, total in totals.items()]
    yield sums

    if gone is not None and tensors.down_bias is not None:
        bias = part_of(tensors.down_bias)
        bias.tensor.add_(gone[bias.span(0)])
    if init == "split" and down is not None:
        for part, rows in copies:
            put(part, 0, chosen, rows)
        _share(down, chosen, donors, columns, (seed, event, tensors.site, SPLIT_WORD))
    else:
        for entry, (up, model) in enumerate(zip(tensors.incoming, models, strict=True)):
            words = seed, event, tensors.site, weight_word(entry)
            _fresh_rows(up, chosen, model, modelled.numel(), init, std, words)
        if outgoing == "zero" and down is not None:
            put(down, 1, chosen, 0.0)
    for state in tensors.state:
        value: Tensor | float = 0.0
        if state.fill == "mean":  # of what the slices before have left: a weight within a layer has two
            total = totals[state] if state in totals else _total(state, modelled)
            value = (total / modelled.numel()).repeat_interleave(chosen.numel(), state.dim)
        put(state.tensor, state.dim, chosen, value)


def _taken(tensor: Tensor, dim: int, places: Tensor, sums: Sums) -> Tensor:
    found = entries(tensor, dim, places)
    if split_along(tensor, dim):
        sums.append((found, tensor))
    return found


def _mean_contribution(tensors: NeuronTensors, chosen: Tensor, sums: Sums) -> Tensor | None:
    """[M]: what the chosen neurons give on average."""
    if tensors.down_weight is None or tensors.down_bias is None or tensors.mean_output is None:
        return None
    down = part_of(tensors.down_weight)
    held, columns = down.find(chosen, 1)
    gone = down.tensor.new_zeros(tensors.down_weight.shape[0], dtype=wide(down.tensor))
    gone[down.span(0)] = down.tensor[:, columns].to(gone.dtype) @ tensors.mean_output[chosen[held]].to(gone.dtype)
    sums.append((gone, tensors.down_weight))
    return gone


def _row_sums(up: Incoming, modelled: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
    """[2] and [1]: sums of the models' weights and of their squares, and of their biases."""
    rows = entries(up.weight, 0, modelled)
    of_weights = torch.stack([rows.sum(), rows.square().sum()])
    of_biases = rows.new_zeros(1) if up.bias is None else entries(up.bias, 0, modelled).sum(0, keepdim=True)
    sums += [(of_weights, up.weight), (of_biases, up.weight if up.bias is None else up.bias)]
    return of_weights, of_biases


def _total(state: StateSlice, modelled: Tensor) -> Tensor:
    """The sum over the models, which dimension `dim` keeps with one entry."""
    return entries(state.tensor, state.dim, modelled).sum(state.dim, keepdim=True)


def _fresh_rows(
    up: Incoming, chosen: Tensor, sums: tuple[Tensor, Tensor] | None, models: int, init: Init, std: float, words: Words
) -> None:
    """sums: of `_row_sums` over so many models, for init="layer". words: seed, and the random counter's."""
    inputs, mean, fresh_bias = math.prod(up.weight.shape[1:]), 0.0, 0.0
    if sums is not None:
        mean, square = (sums[0] / max(1, models * inputs)).tolist()
        std, fresh_bias = math.sqrt(max(0.0, square - mean * mean)), float(sums[1]) / models
    elif init == "fan_in":
        std = 1.0 / math.sqrt(3.0 * max(1, inputs))
    elif init == "zero":
        std = 0.0
    part = part_of(up.weight)
    held, rows = part.find(chosen, 0)
    columns = torch.arange(inputs, device=chosen.device).view(1, *up.weight.shape[1:])[:, part.span(1)]
    seed, event, site, word = words
    noise = normal(seed, chosen[held].view(-1, *[1] * (columns.ndim - 1)) * inputs + columns, event, site, word)
    part.tensor[rows] = (mean + std * noise).to(part.tensor.dtype)
    if up.bias is not None:
        put(up.bias, 0, chosen, fresh_bias)


def _share(down: Tensor, chosen: Tensor, donors: Tensor, columns: Tensor, words: Words) -> None:
    """Parts the donors' columns [m, K], of the rows held here, between them and the chosen neurons."""
    seed, event, site, word = words
    rows = torch.arange(down.shape[0], device=chosen.device)[part_of(down).span(0)]
    share = 0.4 + 0.2 * uniform(seed, chosen * down.shape[0] + rows.unsqueeze(1), event, site, word)
    columns = columns.to(down.dtype)
    given = (columns * share).to(down.dtype)
    put(down, 1, chosen, given)
    put(down, 1, donors, columns - given)
