"""New neurons two by two: equal incoming weights, opposite outgoing ones, so that they cancel and are heard at once.

A neuron with zero outgoing weights adds nothing, and no gradient reaches its incoming weights: it is as useless as the one it
replaced until its outgoing weights have grown, which may take longer than a training lasts. The two of a pair add nothing
either, together, but each has a gradient at full size. Since their outgoing weights are opposite, so are the gradients of
their incoming weights: the first step parts them. (Antisymmetric initialisation, arXiv 1905.07777, there of a whole network.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neuroplastic_kernels import Sums, entries, put, split_along

from ..observe.statistics import WatchedSite
from ..sites import NeuronSlice


def pair_up(known: WatchedSite, mask: Tensor, most: int, scores: Tensor) -> Iterator[Sums]:
    """Makes pairs of the new neurons of a site, in place; they have fresh incoming and zero outgoing weights so far.

    The second of each pair gets the first one's incoming weights. The first gets the outgoing weights of a neuron that stays,
    the k-th pair those of the k-th from the median of the scores, of neurons that were seen, upward; the second gets their
    negative. A new neuron without a partner stays silent. Waits for no device, and costs what `most` neurons cost.

    Yields what is still to be completed over shards, and writes when it goes on; see `neuroplastic_kernels.in_turn`.

    Args:
        mask: [N] bool, the new neurons. most: at most so many of them, a bound known on the host.
        scores: [N], from before the change.
    """
    chosen = torch.argsort(mask.int(), descending=True, stable=True)[: most // 2 * 2]
    first, second = chosen[: mask.numel() // 2 * 2].view(-1, 2).unbind(1)
    paired = mask[second]
    survivors = known.statistics.active & ~mask
    seen = survivors & (known.statistics.weight > 0)  # others may be silent, such as those that grew in this very step
    models = _from_the_median_up(scores, torch.where(seen.any(), seen, survivors), len(first))
    incoming = [part for weights in known.site.incoming for part in weights if part is not None]
    taken = [(part, entries(part.view, part.dim, first)) for part in incoming]
    taken += [(part, entries(part.view, part.dim, models)) for part in known.site.outgoing]
    yield [(values, part.tensor) for part, values in taken if split_along(part.tensor, part.dim)]

    for part, values in taken[: len(incoming)]:
        _put(part, second, values, paired)
    for part, values in taken[len(incoming) :]:
        _put(part, first, values, paired)
        _put(part, second, -values, paired)


def _from_the_median_up(scores: Tensor, survivors: Tensor, count: int) -> Tensor:
    """[count] int64: survivors in the order of their scores, from the median on, from there again after the highest."""
    order = torch.argsort(torch.where(survivors, scores, torch.inf), stable=True)
    middle, end = survivors.sum() // 2, survivors.sum()
    places = middle + torch.arange(count, device=scores.device) % (end - middle).clamp_min(1)
    return order[places.clamp_max(len(order) - 1)]


def _put(part: NeuronSlice, where: Tensor, values: Tensor, valid: Tensor) -> None:
    """Writes `values` to the entries `where` along the neurons; entries that are not `valid` keep theirs."""
    if split_along(part.tensor, part.dim):
        kept = valid.nonzero().squeeze(1)
        put(part.view, part.dim, where[kept], values.index_select(part.dim, kept))
    else:
        chosen = valid.view([-1 if d == part.dim else 1 for d in range(values.ndim)])
        put(part.view, part.dim, where, torch.where(chosen, values, entries(part.view, part.dim, where)))
