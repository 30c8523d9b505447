"""Steps of different size for young and old neurons: factors that NeuroPlastic multiplies into its updates, or no steps.

A neuron that DropIn made starts with `young_plasticity` and goes to `old_plasticity` in a straight line over `consolidation`
steps of its age. The neurons a model came with are old from the start: their age counts from the first observation, but what
they know is older, and consolidation protects that knowledge. For a network trained from scratch that means that all but later
neurons step by `old_plasticity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neuroplastic_kernels import NeuronFactor

from ..config import DropInConfig
from ..observe.statistics import NeuronStatistics, WatchedSite
from ..sites import Site
from .optimizers import Optimizers

DECAYS = ("weight_decay", "lambd")  # what shrinks weights without a gradient; "lambd" is ASGD's


def plasticity_factors(age: Tensor, fresh: Tensor, config: DropInConfig) -> Tensor:
    """[N] float32: what the step of each neuron is multiplied by.

    Args:
        age: [N] int64, in steps.
        fresh: [N] bool, whether DropIn made the neuron; the others are old.
    """
    youth = (1.0 - age.float() / config.consolidation).clamp_min(0.0) * fresh
    old = torch.full_like(youth, config.old_plasticity)
    return torch.lerp(old, torch.full_like(youth, config.young_plasticity), youth)  # exact at both ends


class StepFactors:
    """The factors of all sites' neurons, in the hands of the optimizers that train them.

    Args:
        watched: sites whose neurons can be separated (see sites.require_abilities): a parameter has one dimension of neurons.
        all_neurons: the statistics of all their neurons side by side.
    """

    def __init__(self, watched: Sequence[WatchedSite], all_neurons: NeuronStatistics, config: DropInConfig) -> None:
        self.sites, self.all_neurons, self.config = [known.site for known in watched], all_neurons, config
        self.optimizers: list[torch.optim.Optimizer] = []  # those that hold factors
        self._given: list[int] = []  # ids of the optimizers and of the tensors that they hold
        self._values = self._factors()

    def attach(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Gives the factors to the optimizers that train the neurons, and takes them from those that had them before.

        Raises:
            TypeError: a weight is trained by an optimizer without factors per neuron.
        """
        tensors = [tensor for each in optimizers for group in each.param_groups for tensor in group["params"]]
        given = [id(each) for each in (*optimizers, *tensors)]
        if self.optimizers and given == self._given:
            return
        if not optimizers:
            raise TypeError(
                "optimizer must be a torch.optim.Optimizer, got None: without one young_plasticity and old_plasticity scale no "
                "step; pass NeuroPlastic to DropIn.step, or leave both at 1"
            )
        trains = {id(tensor): each for each in optimizers for group in each.param_groups for tensor in group["params"]}
        for site in self.sites:
            for weight in site.weights:
                optimizer = trains.get(id(weight))
                if optimizer is not None and not isinstance(getattr(optimizer, "neuron_factors", None), dict):
                    raise TypeError(
                        f"young_plasticity and old_plasticity scale the steps of NeuroPlastic, and "
                        f"{type(optimizer).__name__} has no factors per neuron; train with hf_neuroplastic.NeuroPlastic, or "
                        f"leave both at 1"
                    )
        self.detach()
        self._values = self._factors().to(self.sites[0].weights[0].device)
        for parameter, factor in self._per_parameter():
            held = getattr(trains.get(id(parameter)), "neuron_factors", None)
            if held is not None:
                held[parameter] = factor
                self.optimizers.append(trains[id(parameter)])
        self._given = given

    def update(self) -> None:
        """Brings the factors to the neurons' present ages, in place and without a synchronisation."""
        if self.optimizers:
            self._values.copy_(self._factors())

    def detach(self) -> None:
        """Leaves the optimizers as they were before `attach`."""
        for optimizer in self.optimizers:
            for parameter in (parameter for site in self.sites for parameter in site.parameters):
                optimizer.neuron_factors.pop(parameter, None)  # type: ignore[attr-defined]
        self.optimizers, self._given = [], []

    def _factors(self) -> Tensor:
        return plasticity_factors(self.all_neurons.age, self.all_neurons.fresh, self.config)

    def _per_parameter(self) -> Iterator[tuple[Tensor, NeuronFactor]]:
        views = self._values.split([site.width for site in self.sites])
        for site, values in zip(self.sites, views, strict=True):
            for neuron_slice in site.slices:
                if isinstance(neuron_slice.tensor, nn.Parameter):
                    yield neuron_slice.tensor, NeuronFactor(values, neuron_slice.dim)


def freeze_existing(watched: Sequence[WatchedSite]) -> list[RemovableHandle]:
    """Sets the gradients of all neurons but fresh ones, and of outgoing biases, to zero; removing the handles ends it.

    Args:
        watched: sites whose neurons can be separated (see sites.require_abilities): no parameter belongs to two of them.
    """
    handles = []
    for known in watched:
        site = known.site
        for neuron_slice in site.slices:
            if isinstance(neuron_slice.tensor, nn.Parameter) and neuron_slice.tensor.requires_grad:
                handles.append(neuron_slice.tensor.register_hook(_only_fresh(known.statistics, neuron_slice.dim)))
        if site.down.bias is not None and site.down.bias.requires_grad:
            handles.append(site.down.bias.register_hook(torch.zeros_like))
    return handles


def _only_fresh(statistics: NeuronStatistics, dim: int) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        old = ~statistics.fresh.to(gradient.device).view([-1 if d == dim else 1 for d in range(gradient.ndim)])
        return gradient.masked_fill(old, 0.0)

    return hook


def refuse_decay(optimizers: Optimizers, sites: Sequence[Site]) -> None:
    """Raises ValueError where an optimizer would move frozen neurons of `sites` although their gradients are zero."""
    holders = {id(tensor): site.name for site in sites for tensor in (*site.parameters, site.down.bias)}
    for optimizer in optimizers.found:
        for group in optimizer.param_groups:
            for option in DECAYS:
                if not group.get(option):
                    continue
                held = [holders[id(t)] for t in group["params"] if t.requires_grad and id(t) in holders]
                if held:
                    raise ValueError(
                        f"freeze_existing=True, but {type(optimizer).__name__} has {option}={group[option]} for weights of "
                        f"{held[0]!r}, which would move the neurons that are to stay: give these weights {option}=0 (under "
                        f"Trainer's own optimizer TrainingArguments(weight_decay=0))"
                    )
