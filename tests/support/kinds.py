"""One small model for every kind of site, all used alike."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import GATED, tiny_batch, tiny_model
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_neuroplastic import DropIn, DropInConfig
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.sites import Site


class Recurrent(nn.Module):
    """A GRU of two layers and the Linear that takes its output."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 7, num_layers=2, batch_first=True, **settings)
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0])


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.GELU(), nn.Conv1d(8, 4, 3, stride=2))


def _normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.0),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
    )


def _chain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


def _resnet(layer: str) -> nn.Module:
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[12, 16], depths=[1, 1], layer_type=layer, num_labels=2)
    )


@dataclass(frozen=True)
class Kind:
    """How to make a model, and what to put in: the shape of a tensor, or the name of a family of tiny.py."""

    model: Callable[[], nn.Module]
    inputs: tuple[int, ...] | str
    settings: dict[str, Any] = field(default_factory=dict)
    silences: bool = True
    resizes: bool = True

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model().train()

    def outputs(self, model: nn.Module, seed: int = 0) -> torch.Tensor:
        if isinstance(self.inputs, str):
            return model(**tiny_batch(self.inputs, seed=seed)).logits
        x = torch.randn(self.inputs, generator=torch.Generator().manual_seed(seed))
        outputs = model(x)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.logits

    def config(self, **settings: Any) -> DropInConfig:
        return DropInConfig(**{"stop": None, **self.settings, **settings})

    def observed(self, **settings: Any) -> tuple[nn.Module, DropIn]:
        """A model whose neurons have been seen for one step."""
        model = self.build()
        dropin = DropIn(model, self.config(**settings))
        self.train_step(model)
        dropin.step()
        return model, dropin

    @torch.no_grad()  # a graph that is still held would remember the old shapes
    def in_both_modes(self, model: nn.Module) -> list[torch.Tensor]:
        """Outputs in training and in evaluation; running statistics stay as they are."""
        before = snapshot(model)
        both = [self.outputs(model.train()), self.outputs(model.eval())]
        model.load_state_dict(before)
        model.train()
        return both

    def train_step(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> None:
        self.outputs(model, seed).square().mean().backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()


KINDS = {
    **{family: Kind(lambda family=family: tiny_model(family), family) for family in GATED},
    "llama_bias": Kind(lambda: tiny_model("llama", mlp_bias=True, hidden_act="sigmoid"), "llama"),
    "convolutions": Kind(_convolutions, (2, 3, 11)),
    "normalised": Kind(_normalised, (3, 3, 7, 7)),
    "resnet_basic": Kind(lambda: _resnet("basic"), (3, 3, 32, 32), resizes=False),
    "resnet_bottleneck": Kind(lambda: _resnet("bottleneck"), (3, 3, 32, 32), resizes=False),
    "gru": Kind(Recurrent, (2, 5, 4), {"recurrent": {"gru": "head"}}, silences=False, resizes=False),
    "chain": Kind(_chain, (4, 5)),
}
RESIZABLE = [name for name, kind in KINDS.items() if kind.resizes]
SILENCEABLE = [name for name, kind in KINDS.items() if kind.silences]


def decisions(action: Action, dropin: DropIn, *chosen: int) -> list[Decision]:
    """The same neurons in every site."""
    return [Decision(action, torch.isin(torch.arange(site.width), torch.tensor(chosen))) for site in dropin.sites]


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def hold_constant(site: Site, neuron: int, value: float) -> None:
    """Gives a neuron a constant output: all that is its own becomes 0, but one bias."""
    for neuron_slice in (*(part for rows in site.incoming for part in rows if part is not None), *site.others):
        if isinstance(neuron_slice.tensor, nn.Parameter):
            neuron_slice.view.select(neuron_slice.dim, neuron).zero_()
    if value:
        norm = getattr(site, "norm", None)
        for layer in (site.up, site.gate) if norm is None else (norm,):
            if layer is not None:
                layer.bias[neuron] = value
