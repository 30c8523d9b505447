"""Penalties that hold weights near those of the stage before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batches = Sequence[Mapping[str, Tensor]]


class Anchor:
    """A penalty on the way from the weights of the stage before: `strength` / 2 * sum of importance * difference^2.

        anchor = Anchor("ewc", 100.0)
        anchor.take(model, batches, loss)  # after each stage
        loss = task_loss + anchor(model)

    Args:
        kind: "l2", importance 1; "ewc" (arXiv 1612.00796, eq. 3), the mean squared gradient of each weight over batches of
            the stages so far, which add up; before any nothing is held. Batches stand for the paper's single examples.
    """

    def __init__(self, kind: str, strength: float) -> None:
        self.kind, self.strength = kind, strength
        self.start: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module) -> Tensor:
        self._follow(model)
        terms = [
            ((1.0 if self.kind == "l2" else self.importance[name]) * (parameter - self.start[name]).square()).sum()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name in (self.start if self.kind == "l2" else self.importance)
        ]
        return 0.5 * self.strength * torch.stack(terms).sum() if terms else torch.zeros(())

    def take(self, model: nn.Module, batches: Batches, loss: Callable[[Any, Tensor], Tensor]) -> None:
        """The weights as they are now are the ones to stay near; "ewc" measures their importance on the batches."""
        self.start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._follow(model)
        if self.kind != "ewc":
            return
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            model.zero_grad()
            loss(model(**inputs), batch["labels"]).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    seen = self.importance.setdefault(name, torch.zeros_like(parameter))
                    seen += parameter.grad.square() / len(batches)
        model.zero_grad()

    def _follow(self, model: nn.Module) -> None:
        """To where the model's weights are: Trainer takes them to the accelerator after the first `take`."""
        for name, parameter in model.named_parameters():
            for held in (self.start, self.importance):
                if name in held:
                    held[name] = held[name].to(parameter.device)
