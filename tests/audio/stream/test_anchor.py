"""Penalties on the way from the weights of the stage before."""

import pytest
import torch
from torch import nn

from hf_neuroplastic.audio.stream.anchor import Anchor


class Output(dict):
    """As transformers' models return logits."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return Output(logits=self.layer(x))


def loss(output, labels):
    return nn.functional.cross_entropy(output["logits"], labels)


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(4, 3, generator=generator), "labels": torch.tensor([0, 1, 0, 1])} for _ in range(count)]


@pytest.mark.parametrize("kind", ["l2", "ewc"])
def test_nothing_moved_costs_nothing(kind):
    model, anchor = Model(), Anchor(kind, 3.0)
    assert anchor(model) == 0
    anchor.take(model, batches(), loss)
    assert anchor(model) == 0
    assert all(p.grad is None for p in model.parameters())


def test_l2_is_half_the_squared_distance():
    model, anchor = Model(), Anchor("l2", 3.0)
    anchor.take(model, [], loss)
    with torch.no_grad():
        model.layer.weight[0, 1] += 2.0
    assert anchor(model).item() == pytest.approx(3.0 / 2 * 4.0)
    model.layer.weight.requires_grad_(False)  # what cannot move is not held
    assert anchor(model).item() == 0


def test_ewc_weighs_by_the_mean_squared_gradient_and_adds_stages_up():
    model, anchor = Model(), Anchor("ewc", 2.0)
    held = batches()
    for _ in range(2):
        anchor.take(model, held, loss)
    importance = torch.zeros(2, 3)
    for batch in held:
        model.zero_grad()
        loss(model(batch["x"]), batch["labels"]).backward()
        importance += model.layer.weight.grad.square() / len(held)
    start = model.layer.weight.detach().clone()
    with torch.no_grad():
        model.layer.weight += 0.5
    want = 2.0 / 2 * (2 * importance * (model.layer.weight - start).square()).sum()
    torch.testing.assert_close(anchor(model), want.detach(), check_dtype=False)


def test_what_has_no_importance_is_free():
    """Of a model that no batch was seen of; and a weight that no loss reaches."""
    model, anchor = Model(), Anchor("ewc", 1.0)
    anchor.take(model, [], loss)
    with torch.no_grad():
        model.layer.weight += 1.0
    assert anchor(model) == 0


@pytest.mark.parametrize("kind", ["l2", "ewc"])
def test_weights_are_held_where_the_model_is_now(kind):
    model, anchor = Model(), Anchor(kind, 3.0)
    anchor.take(model, batches(), loss)
    assert anchor(model.to("meta")).device.type == "meta"  # as Trainer takes it to an accelerator
