"""New neurons two by two: equal incoming weights, opposite outgoing ones, so that they cancel and are heard at once.

A neuron with zero outgoing weights adds nothing, and no gradient reaches its incoming weights: it is as useless as the one it
replaced until its outgoing weights have grown, which may take longer than a training lasts. The two of a pair add nothing
either, together, but each has a gradient at full size. Since their outgoing weights are opposite, so are the gradients of
their incoming weights: the first step parts them. (Antisymmetric initialisation, arXiv 1905.07777, there of a whole network.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..observe.statistics import WatchedSite


def pair_up(known: WatchedSite, mask: Tensor, most: int, scores: Tensor) -> None:
    """Makes pairs of the new neurons of a site, in place; they have fresh incoming and zero outgoing weights so far.

    The second of each pair gets the first one's incoming weights. The first gets the outgoing weights of a neuron that stays,
    the k-th pair those of the k-th from the median of the scores upward; the second gets their negative. A new neuron without
    a partner stays silent. Waits for no device, and costs what `most` neurons cost.

    Args:
        mask: [N] bool, the new neurons. most: at most so many of them, a bound known on the host.
        scores: [N], from before the change.
    """
    chosen = torch.argsort(mask.int(), descending=True, stable=True)[: most // 2 * 2]
    first, second = chosen[: mask.numel() // 2 * 2].view(-1, 2).unbind(1)
    paired = mask[second]
    for part in (part for weights in known.site.incoming for part in weights if part is not None):
        _put(part.view, part.dim, second, part.view.index_select(part.dim, first), paired)
    models = _from_the_median_up(scores, known.statistics.active & ~mask, len(first))
    for part in known.site.outgoing:
        column = part.view.index_select(part.dim, models)
        _put(part.view, part.dim, first, column, paired)
        _put(part.view, part.dim, second, -column, paired)


def _from_the_median_up(scores: Tensor, survivors: Tensor, count: int) -> Tensor:
    """[count] int64: survivors in the order of their scores, from the median on, from there again after the highest."""
    order = torch.argsort(torch.where(survivors, scores, torch.inf), stable=True)
    middle, end = survivors.sum() // 2, survivors.sum()
    places = middle + torch.arange(count, device=scores.device) % (end - middle).clamp_min(1)
    return order[places.clamp_max(len(order) - 1)]


def _put(tensor: Tensor, dim: int, where: Tensor, values: Tensor, valid: Tensor) -> None:
    """Writes `values` to the entries `where` along `dim`; entries that are not `valid` keep theirs."""
    chosen = valid.view([-1 if d == dim else 1 for d in range(tensor.ndim)])
    tensor.index_copy_(dim, where, torch.where(chosen, values, tensor.index_select(dim, where)))
