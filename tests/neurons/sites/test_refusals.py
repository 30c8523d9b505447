"""What a site cannot do is refused, by name and with the reason, before anything has changed."""

import pytest
import torch
from kinds import KINDS
from tiny import SMALL
from torch import nn
from torch.nn.utils import prune
from transformers import Phi3Config, Phi3ForSequenceClassification

from hf_neuroplastic import DropIn, DropInConfig, compact, reserve
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.schedules import Cosine, OneOff
from hf_neuroplastic.neurons.sites import find_sites, inert_slots


class Holder(nn.Module):
    def __init__(self, recurrent, head):
        super().__init__()
        self.recurrent, self.head = recurrent, head


def _grouped():
    return nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv1d(4, 2, 1))


def _pruned():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 1, 1))
    prune.l1_unstructured(model[0], "weight", 0.5)  # the class stays, the weight is no Parameter any more
    return model


def _phi():
    return Phi3ForSequenceClassification(
        Phi3Config(**SMALL, num_key_value_heads=2, vocab_size=30, pad_token_id=0, max_position_embeddings=20)
    )


def _gru(**settings):
    return Holder(nn.GRU(4, 6, **settings), nn.Linear(6, 2))


NAMED = {"recurrent": {"recurrent": "head"}}
REFUSALS = [
    (lambda: Holder(nn.LSTM(4, 6), nn.Linear(6, 2)), NAMED, TypeError, ["'recurrent'", "torch.nn.GRU", "LSTM"]),
    (lambda: _gru(bidirectional=True), NAMED, ValueError, ["'recurrent'", "bidirectional"]),
    (_gru, {"recurrent": {"gru": "head"}}, ValueError, ["'gru'", "no such module", "'recurrent'", "'head'"]),
    (_gru, {"recurrent": {"recurrent": "recurrent"}}, TypeError, ["'recurrent'", "torch.nn.Linear"]),
    (
        lambda: Holder(nn.GRU(4, 6), nn.Linear(12, 2)),
        NAMED,
        ValueError,
        ["'head'", "in_features=12", "hidden_size=6"],
    ),
    (_gru, {}, ValueError, ["no feed-forward layer", "GRU", "DropInConfig(recurrent=...)"]),
    (lambda: Holder(nn.LSTM(4, 6), nn.Linear(6, 2)), {}, ValueError, ["LSTM", "only a unidirectional GRU"]),
    (_gru, {"recurrent": "recurrent"}, TypeError, ["recurrent must be None, or a dict", "'recurrent'"]),
    (_gru, {"recurrent": {"recurrent": 1}}, TypeError, ["recurrent must be None, or a dict", "1"]),
    (_gru, NAMED | {"init": "split"}, ValueError, ["init='split'", "'recurrent'", "GRU", "another init"]),
    (_gru, NAMED | {"synaptic_lr": 0.1}, ValueError, ["synaptic_lr=0.1", "GRU", "synaptic_lr=0"]),
    (_gru, NAMED | {"freeze_existing": True}, ValueError, ["freeze_existing=True", "GRU"]),
    (_gru, NAMED | {"old_plasticity": 0.5}, ValueError, ["old_plasticity", "GRU"]),
    (_gru, NAMED | {"extra_neurons": OneOff(0.0, 0, 2)}, ValueError, ["extra_neurons", "GRU"]),
    (_gru, NAMED | {"extra_neurons": Cosine(0.1, 0.5, 0.0, -0.5)}, ValueError, ["extra_neurons", "GRU"]),
    (_grouped, {}, ValueError, ["'0'", "groups"]),
    (_phi, {}, ValueError, ["Phi3MLP", "gate and up projections in one weight"]),
    (
        KINDS["resnet_basic"].build,
        {"extra_neurons": OneOff(0.0, 0, 2)},
        ValueError,
        ["layer.0", "ResNetConvLayer", "width"],
    ),
    (KINDS["normalised"].build, {"synaptic_lr": 0.1}, ValueError, ["synaptic_lr=0.1", "'0'", "BatchNorm"]),
    (KINDS["convolutions"].build, {"init": "split"}, ValueError, ["init='split'", "'0'", "channels"]),
    (_pruned, {}, ValueError, ["no feed-forward layer", "'0'", "recomputed"]),
    (
        KINDS["chain"].build,
        {"freeze_existing": True},
        ValueError,
        ["freeze_existing", "belongs to another site as well"],
    ),
    (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Dropout1d(0.1, inplace=True), nn.Conv1d(3, 1, 1)),
        {},
        ValueError,
        ["inplace=False"],
    ),
    (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 1)), nn.ReLU(), nn.Conv1d(3, 1, 1)),
        {},
        ValueError,
        ["no feed-forward layer", "'0'", "recomputed"],
    ),
]


def _hooks(model):
    return [
        hook for part in model.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    ]


@pytest.mark.parametrize(("build", "settings", "error", "words"), REFUSALS)
def test_what_a_site_cannot_do_is_refused_when_the_model_is_patched(build, settings, error, words):
    model = build()
    hooks, before = _hooks(model), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error) as caught:
        DropIn(model, DropInConfig(**settings), total_steps=10)
    for word in words:
        assert word in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert _hooks(model) == hooks


@pytest.mark.parametrize("name", ["resnet_basic", "resnet_bottleneck"])
def test_the_widths_of_a_resnet_stay(name):
    model = KINDS[name].build()
    with pytest.raises(ValueError, match=r"layer\.0.*can hold no reserve.*no configuration"):
        reserve(model, 1)
    with torch.no_grad():
        for site in find_sites(model):
            for neuron_slice in site.slices:
                neuron_slice.view.select(neuron_slice.dim, 0).zero_()
    assert all(int(inert_slots(site).sum()) == 1 for site in find_sites(model))
    assert compact(model) == 0


@pytest.mark.parametrize("action", [Action.GROW, Action.PRUNE])
def test_units_of_a_gru_can_only_be_replaced(action):
    dropin = DropIn(_gru(), DropInConfig(**NAMED))
    with pytest.raises(ValueError, match=r"'recurrent' cannot grow or be pruned.*only be replaced"):
        dropin.apply([Decision(action, torch.arange(6) == 1)])
