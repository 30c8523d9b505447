"""Carries decisions out on a model in place: same Parameters, same shapes; weights, optimizer state and statistics together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuroplastic_kernels import Incoming, Init, NeuronTensors, StateSlice, in_turn, is_sharded, neuron_reinit

from ..config import DropInConfig
from ..decide.decisions import Action, Decision
from ..observe.statistics import WatchedSite
from ..sites import NeuronSlice, Site, require_ability
from .optimizer_state import copies_of, followers, state_slices
from .optimizers import Optimizers
from .pairs import pair_up


def apply_decisions(
    watched: Sequence[WatchedSite],
    decisions: Sequence[Decision],
    scores: Sequence[Tensor],
    *,
    config: DropInConfig,
    optimizers: Optimizers,
    event: int,
    workspace: dict[Any, Any] | None = None,
) -> list[Tensor]:
    """Carries out one decision per site, all of the first one's action, in place.

    REPLACE gives the masked neurons fresh weights by `config.init` and `config.outgoing`; GROW activates slots in reserve
    with fresh incoming and zero outgoing weights; PRUNE silences neurons, folds their mean output into `down.bias` and puts
    them in reserve. In every case their optimizer state returns to its initial value, or follows the weights where it is a
    copy of them, and their statistics are forgotten. Where neurons are replaced, biases that do
    not learn stay as they are.

    Everything that can be refused is refused before the first tensor is written.

    Args:
        scores: per site [N], used to find the strongest neurons for init="split".
        event: word of the random counter, different for each event.
        workspace: a dict to keep between calls, in which the fused form holds what need not be prepared anew.

    Returns:
        Per site [N] bool: the neurons that were changed. Only reserve slots can grow and only active neurons be replaced or
        pruned; a split needs a distinct strong neuron for each new one.

    Raises:
        TypeError: optimizer state that cannot be reset per neuron.
        ValueError: a decision of another action, a mask of another shape, or PRUNE and GROW where act(0) is not 0, so that
            a silenced neuron would go on learning.
    """
    action = decisions[0].action
    manner = _manner(action, config)
    masks = [
        _effective_mask(decision, action, known, manner.init)
        for known, decision in zip(watched, decisions, strict=True)
    ]
    tensors = [
        _neuron_tensors(known, mask, score, manner, optimizers, index)
        for index, (known, mask, score) in enumerate(zip(watched, masks, scores, strict=True))
    ]
    unheard = [_unheard_inputs(known.site, mask, manner) for known, mask in zip(watched, masks, strict=True)]
    copies = [
        [each for neurons in _written(known.site.slices, manner, optimizers) for each in followers(optimizers, neurons)]
        for known in watched
    ]
    biases = [_copied_biases(known.site, optimizers) for known in watched]
    if manner.outgoing == "zero":
        for known, mask in zip(watched, masks, strict=True):
            _fold_mean_output(known.site, mask, known.statistics.mean_output, optimizers)
    neuron_reinit(
        tensors,
        init=manner.init,
        std=config.init_std,
        outgoing=manner.outgoing,
        seed=config.seed,
        event=event,
        workspace=workspace,
        backend=config.backend,
    )
    for known, entries in zip(watched, unheard, strict=True):
        if entries is not None:
            known.site.up.weight.detach().masked_fill_(entries, 0.0)
    pairs = [
        pair_up(known, mask, known.site.width if decision.most is None else decision.most, score)
        for known, mask, decision, score in zip(watched, masks, decisions, scores, strict=True)
        if manner.paired and known.learns_whole  # else a bias or norm that stays would tell the two apart
    ]
    in_turn(pairs, together=any(is_sharded(weight) for known in watched for weight in known.site.weights))
    for known, mask, copied, shifted in zip(watched, masks, copies, biases, strict=True):
        for follower in copied:
            follower.follow(mask)
        for copy, bias, before in shifted:
            copy.add_((bias.detach() - before).to(copy.dtype))
        known.statistics.forget(mask)
        if action is Action.GROW:
            known.statistics.active |= mask
        elif action is Action.PRUNE:
            known.statistics.active &= ~mask
    return masks


class _Manner(NamedTuple):
    """How the chosen neurons are written."""

    init: Init
    outgoing: str
    silent: bool  # they go into reserve
    threshold: float  # new neurons are modelled on those that score above it
    paired: bool  # they become pairs that cancel
    whole: bool  # frozen biases and the like are written too, since the slots were no neurons, or will be none


def _manner(action: Action, config: DropInConfig) -> _Manner:
    if action is Action.PRUNE:
        return _Manner("zero", "zero", True, config.threshold, False, True)
    grown = action is Action.GROW
    outgoing = "keep" if config.outgoing == "keep" and not grown else "zero"
    return _Manner(config.init, outgoing, False, config.threshold, config.pairs and not grown, grown)  # type: ignore[arg-type]


def _effective_mask(decision: Decision, action: Action, known: WatchedSite, init: str) -> Tensor:
    """The slots the action really concerns: reserve slots for GROW, active ones for the others."""
    site, active = known.site, known.statistics.active
    if decision.action is not action:
        raise ValueError(f"decisions must all be {action}, got {decision.action} for site {site.name!r}")
    if decision.mask.dtype is not torch.bool or decision.mask.shape != (site.width,):
        raise ValueError(
            f"the mask of a decision on site {site.name!r} must be bool of shape {(site.width,)}, got {decision.mask.dtype} "
            f"of shape {tuple(decision.mask.shape)}"
        )
    if action is not Action.REPLACE:
        require_ability(site, "be silenced", "cannot grow or be pruned")
    mask = decision.mask & (~active if action is Action.GROW else active)
    if init == "split":
        donors = (active & ~mask).sum()
        mask = mask & (torch.cumsum(mask, 0) <= donors)
    return mask


def _neuron_tensors(
    known: WatchedSite,
    mask: Tensor,
    score: Tensor,
    manner: _Manner,
    optimizers: Optimizers,
    index: int,
) -> NeuronTensors:
    site, statistics = known.site, known.statistics
    survivors = statistics.active & ~mask
    # New neurons should not take after the useless ones that this event's budget left in place.
    healthy = survivors & (score > manner.threshold)
    linear = site.down if isinstance(site.down, nn.Linear) else None
    folds = linear is not None and linear.bias is not None and optimizers.train([linear.bias])
    incoming = (
        (weight, bias if bias is not None and (manner.whole or optimizers.train([bias.tensor])) else None)
        for weight, bias in site.incoming
    )
    return NeuronTensors(
        incoming=tuple(Incoming(weight.view, None if bias is None else bias.view) for weight, bias in incoming),
        down_weight=None if linear is None else linear.weight.detach(),
        down_bias=site.down.bias.detach() if folds else None,
        mask=mask,
        survivors=torch.where(healthy.any(), healthy, survivors),
        mean_output=statistics.mean_output,
        donors=_donors(mask, survivors, score) if manner.init == "split" else None,
        state=tuple(_slices(site, manner, optimizers)),
        site=index,
    )


def _written(slices: Sequence[NeuronSlice], manner: _Manner, optimizers: Optimizers) -> Iterator[NeuronSlice]:
    """Those that the change writes: of parameters that learn, and of buffers."""
    for neurons in slices:
        if manner.whole or not isinstance(neurons.tensor, nn.Parameter) or optimizers.train([neurons.tensor]):
            yield neurons


def _slices(site: Site, manner: _Manner, optimizers: Optimizers) -> Iterator[StateSlice]:
    """The optimizer state of the neurons, and those of their weights that a NeuronTensors has no name for."""
    for neuron_slice in _written(site.slices, manner, optimizers):
        yield from state_slices(optimizers, neuron_slice)
    for neuron_slice in _written(site.others, manner, optimizers):
        yield StateSlice(neuron_slice.view, neuron_slice.dim, "zero" if manner.silent else neuron_slice.fill)
    if manner.outgoing == "zero":
        for neuron_slice in site.outgoing:
            if not (isinstance(site.down, nn.Linear) and neuron_slice.tensor is site.down.weight):
                yield StateSlice(neuron_slice.view, neuron_slice.dim, "zero")


def _donors(mask: Tensor, survivors: Tensor, score: Tensor) -> Tensor:
    """[N] int64: the k-th chosen neuron splits the k-th strongest survivor. Entries of unchosen neurons mean nothing."""
    strongest = torch.argsort(torch.where(survivors, score, -torch.inf), descending=True, stable=True)
    rank = (torch.cumsum(mask, 0) - 1).clamp_min(0)
    return strongest[rank]


def _copied_biases(site: Site, optimizers: Optimizers) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The optimizers' copies of the biases behind the neurons, with the bias and the value that it has now."""
    biases = [site.down.bias, *(into for _, into, _ in site.folds)]
    parameters = {id(bias): bias for bias in biases if isinstance(bias, nn.Parameter)}.values()
    return [(copy, bias, bias.detach().clone()) for bias in parameters for copy in copies_of(optimizers, bias)]


def _fold_mean_output(site: Site, mask: Tensor, mean_output: Tensor, optimizers: Optimizers) -> None:
    """Adds the mean contribution of the masked neurons to what lies behind them, where that is no Linear's bias."""
    for weight, into, sign in site.folds:
        if isinstance(into, nn.Parameter) and not optimizers.train([into]):
            continue
        gone = torch.where(mask, mean_output, 0.0).to(torch.promote_types(weight.dtype, torch.float32))
        taps = weight.detach().to(gone.dtype).flatten(2).sum(2) if weight.ndim > 2 else weight.detach().to(gone.dtype)
        into.detach().add_(sign * (taps @ gone))


def _unheard_inputs(site: Site, mask: Tensor, manner: _Manner) -> Tensor | None:
    """[N, D, ...] bool: entries of the drawn rows for neurons of the site before that nobody listens to.

    Among them are its slots in reserve, which stay silent only as long as their outgoing weights are zero, drawn or not.
    """
    if not site.follows or manner.init in ("split", "zero"):
        return None
    weight = site.up.weight.detach()
    unheard = ~weight.any(dim=tuple(dim for dim in range(weight.ndim) if dim != 1), keepdim=True)
    return unheard & mask.view(-1, *[1] * (weight.ndim - 1))
