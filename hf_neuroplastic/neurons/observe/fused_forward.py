"""The feed-forward layer with its elementwise part in one kernel, which also takes the neuron sums in its backward pass.

What the fusion saves pays for what the watching costs. It stands in for the layer's own forward while the layer is observed
in training; in evaluation, and wherever the kernel cannot run, the stock forward runs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from neuroplastic_kernels import activation_name, ffn_activation, select

from ..sites import Site
from .hooks import Observer

REPLACED = ("forward", "_replicate_for_data_parallel")  # of the module, on the instance


class FusedForward:
    """Its `forward` takes the place of `container.forward` on one instance; the class and its methods stay as they are.

    A bound method, since torch.compile knows other callables by identity, which would cost a graph for every layer of a stack.

    Args:
        site: with the module that computes `output_dropout(down(dropout(activation(up(x)))))`.
        observer: says whether this pass is observed, and where its neuron sums go.
        backend: "auto" or "fused", see neuroplastic_kernels.dispatch.
    """

    def __init__(self, site: Site, observer: Observer, backend: str) -> None:
        self.site, self.observer, self.backend = site, observer, backend
        self.activation = activation_name(site.activation)

    def forward(self, hidden_states: Tensor) -> Tensor:
        site = self.site
        assert site.container is not None  # `install` saw to it
        if not self._applies(hidden_states):
            return type(site.container).forward(site.container, hidden_states)
        dropout, training = _probability(site.dropout)
        h = F.linear(hidden_states, site.up.weight)
        self.observer.ask(h)
        z = ffn_activation(
            h,
            site.up.bias,
            self.observer.sums(h),
            activation=self.activation,
            dropout=dropout,
            training=training,
            token_mask=self.observer.token_mask(h),
            backend=self.backend,
        )
        y = site.down(z)
        return y if site.output_dropout is None else site.output_dropout(y)

    def replicate(self) -> nn.Module:
        """What DataParallel is to make of the module: a copy that its class's own forward serves, with the copy's weights."""
        container = self.site.container
        assert container is not None  # `install` saw to it
        replica = type(container)._replicate_for_data_parallel(container)
        for name in REPLACED:
            del replica.__dict__[name]
        return replica

    def _applies(self, hidden_states: Tensor) -> bool:
        site = self.site
        # Not whether gradients are on: reentrant checkpointing runs the layer without them first, and again with them.
        if not (self.observer.enabled and site.activation.training and site.up.weight.requires_grad):
            return False  # evaluation gives the stock model's bits, observed by the hook or not
        if any(_is_hooked(part) for part in (site.up, site.activation, site.dropout) if part is not None):
            return False  # who hooks a part expects it to be called
        return select("ffn_activation", self.backend, [hidden_states]) is not select("ffn_activation", "reference")


def install(site: Site, observer: Observer, backend: str) -> bool:
    """Fuses the layer of `site`, if its module computes nothing else and the activation is known; says whether it did."""
    if backend == "reference" or site.container is None or activation_name(site.activation) is None:
        return False
    if "forward" in vars(site.container):
        return False  # somebody else's patch
    stand_in = FusedForward(site, observer, backend)
    for name, method in zip(REPLACED, (stand_in.forward, stand_in.replicate), strict=True):
        setattr(site.container, name, method)
    return True


def fused(container: nn.Module | None) -> FusedForward | None:
    """What stands in for the forward of `container`, or None where the module's own does."""
    method = None if container is None else vars(container).get("forward")
    held = getattr(method, "__self__", None)
    return held if isinstance(held, FusedForward) else None


def remove(container: nn.Module | None) -> None:
    """Gives `container` its own forward back."""
    if container is not None and fused(container) is not None:
        for name in REPLACED:
            delattr(container, name)


def _is_hooked(module: nn.Module) -> bool:
    """Whether anybody but an Observer has hooks on `module`."""
    dicts = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not isinstance(hook, Observer) for hooks in dicts for hook in hooks.values())


def _probability(dropout: nn.Module | None) -> tuple[float, bool]:
    return (dropout.p, dropout.training) if isinstance(dropout, nn.Dropout) else (0.0, False)
