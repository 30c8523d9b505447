"""Patching a model, taking it back, and what is refused before anything changes."""

import copy
import logging
import pickle

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model

from hf_neuroplastic import DropIn, DropInConfig, unpatch
from hf_neuroplastic.neurons.decide.decisions import Action, Decision


def test_a_patched_model_can_be_copied_and_pickled():
    model = tiny_mlp()
    DropIn(model)
    x = torch.randn(3, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_frozen_layers_are_said_to_be_left_alone(caplog):
    model = tiny_model("ast")
    model.audio_spectrogram_transformer.layers[0].requires_grad_(False)
    with caplog.at_level(logging.INFO):
        assert len(DropIn(model).sites) == 1
    assert "1 frozen" in caplog.text


def test_an_unpatched_dropin_says_so():
    dropin = DropIn(tiny_mlp(), total_steps=3)
    dropin.unpatch()
    with pytest.raises(RuntimeError, match="unpatched"):
        dropin.step()


def test_the_copy_of_a_patched_model_can_be_freed():
    model = tiny_model("ast")
    dropin = DropIn(model)
    twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match=r"hf_neuroplastic\.unpatch"):
        DropIn(twin)
    unpatch(twin)
    second = DropIn(twin)
    twin(**tiny_batch("ast")).loss.backward()
    assert all(known.sums.any() for known in second.statistics)
    assert not any(known.sums.any() for known in dropin.statistics)
    assert dropin.watches(model)
    assert not dropin.watches(twin)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("model",), TypeError, "model must be a torch.nn.Module, got str"),
        ((torch.nn.Identity(),), ValueError, "no feed-forward layer"),
        ((tiny_mlp(), {"interval": 3}), TypeError, "config must be a DropInConfig, got dict"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        DropIn(*arguments)


def test_without_a_length_the_default_configuration_never_stops_and_says_so_once(caplog):
    dropin = DropIn(tiny_mlp())
    for _ in range(3):
        dropin.step()
    said = [record.getMessage() for record in caplog.records if "stop=0.75" in record.getMessage()]
    DropIn(tiny_mlp(), total_steps=10).step()
    assert len(said) == 1
    assert "total_steps" in said[0]


@pytest.mark.parametrize(
    ("config", "setting"), [(DropInConfig(start=0.5), "start=0.5"), (DropInConfig.dropin(3), "extra_neurons")]
)
def test_what_needs_the_length_of_training_is_refused_before_the_model_changes(config, setting):
    model = tiny_model("ast")
    with pytest.raises(ValueError, match=rf"{setting} follows .*total_steps.*DropInCallback"):
        DropIn(model, config)
    assert model.config.intermediate_size == tiny_model("ast").config.intermediate_size
    assert DropIn(model, config, total_steps="trainer").total_steps is None


def test_a_silenced_neuron_that_would_go_on_learning_is_refused():
    dropin = DropIn(tiny_mlp(activation=torch.nn.Sigmoid))
    with pytest.raises(ValueError, match="does not map 0 to 0"):
        dropin.apply([Decision(Action.PRUNE, torch.arange(10) == 1)])


@pytest.mark.parametrize(
    "decisions",
    [[], [torch.ones(10, dtype=torch.bool)], [Decision(Action.REPLACE, torch.zeros(10, dtype=torch.bool))] * 2],
)
def test_decisions_must_be_one_per_site(decisions):
    with pytest.raises(ValueError, match="must be 1 Decision objects"):
        DropIn(tiny_mlp()).apply(decisions)


def test_an_optimizer_of_another_model_is_refused():
    dropin = DropIn(tiny_mlp(), DropInConfig(stop=None))
    with pytest.raises(ValueError, match="optimizer holds no parameter of the watched layers"):
        dropin.step(torch.optim.SGD(tiny_mlp().parameters(), lr=0.1))


@pytest.mark.parametrize("total_steps", [0, -5, 1.5, "x", True])
def test_total_steps_are_checked(total_steps):
    with pytest.raises(ValueError, match="total_steps must be an int of at least 1"):
        DropIn(tiny_mlp(), total_steps=total_steps)


def test_weights_sharded_after_patching_are_refused_before_anything_changes():
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(interval=1, maturity=2, stop=None))
    model[0].weight.data = model[0].weight.data[:5].clone()
    with pytest.raises(TypeError, match="sharded"):
        dropin.step()
    assert dropin.step_count == 0


def test_scaling_half_precision_weights_is_refused():
    dropin = DropIn(tiny_mlp().bfloat16(), DropInConfig(synaptic_lr=0.01, stop=None))
    with pytest.raises(TypeError, match=r"synaptic_lr.*bfloat16.*float32"):
        dropin.step()
    assert dropin.step_count == 0
