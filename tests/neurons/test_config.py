import dataclasses
import json
import math

import pytest

from hf_neuroplastic import DropInConfig


@pytest.mark.parametrize(
    "config",
    [
        DropInConfig(),
        DropInConfig.original(),
        DropInConfig(layers=[0, "x"], threshold=math.inf),
        DropInConfig.dropin(3, young_plasticity=2.0, old_plasticity=0.0, consolidation=7),
    ],
)
def test_to_dict_and_back(config):
    written = json.dumps(config.to_dict(), allow_nan=False)
    assert DropInConfig.from_dict(json.loads(written)) == config


@pytest.mark.parametrize(
    "missing", [["young_plasticity", "old_plasticity", "consolidation", "recurrent"], ["criterion"]]
)
def test_what_an_older_version_saved_takes_the_defaults(missing):
    saved = DropInConfig(interval=7).to_dict()
    for name in missing:
        del saved[name]
    assert DropInConfig.from_dict(saved) == DropInConfig(interval=7)


def test_is_frozen_even_through_the_callers_list():
    layers = [0]
    config = DropInConfig(layers=layers)
    layers.append(1)
    assert config.layers == (0,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.interval = 3


ERRORS = [
    ({"criterion": "magic"}, ValueError, ["criterion", "'magic'", "'contribution'", "'random'"]),
    ({"init": "zeros"}, ValueError, ["init", "'zeros'", "'layer'"]),
    ({"outgoing": "half"}, ValueError, ["outgoing", "'half'", "'zero'"]),
    ({"relative": 1}, TypeError, ["relative", "1", "True or False"]),
    ({"threshold": -0.1}, ValueError, ["threshold", "-0.1", "[0.0"]),
    ({"threshold": math.nan}, ValueError, ["threshold", "nan"]),
    ({"threshold": "low"}, TypeError, ["threshold", "'low'", "number"]),
    ({"statistics_decay": 1.0}, ValueError, ["statistics_decay", "1.0"]),
    ({"max_fraction": 1.5}, ValueError, ["max_fraction", "1.5", "1.0"]),
    ({"interval": 0}, ValueError, ["interval", "0", "at least 1"]),
    ({"interval": 2.5}, TypeError, ["interval", "2.5", "int"]),
    ({"maturity": -1}, ValueError, ["maturity", "-1"]),
    ({"cooldown": True}, TypeError, ["cooldown", "True"]),
    ({"max_neuron_age": 0}, ValueError, ["max_neuron_age", "0"]),
    ({"max_neuron_age": 99}, ValueError, ["max_neuron_age", "99", "at least 100"]),  # below maturity
    ({"observe_every": 0}, ValueError, ["observe_every", "0"]),
    ({"young_plasticity": -0.5}, ValueError, ["young_plasticity", "-0.5", "[0.0"]),
    ({"young_plasticity": None}, TypeError, ["young_plasticity", "None", "number"]),
    ({"old_plasticity": math.inf}, ValueError, ["old_plasticity", "inf"]),
    ({"consolidation": 0}, ValueError, ["consolidation", "0", "at least 1"]),
    ({"consolidation": 0.5}, TypeError, ["consolidation", "0.5", "int"]),
    ({"seed": -1}, ValueError, ["seed", "-1"]),
    ({"start": 1.5}, ValueError, ["start", "1.5", "[0, 1]", "int"]),
    ({"start": 10, "stop": 5}, ValueError, ["start=10", "stop=5"]),
    ({"stop": "end"}, TypeError, ["stop", "'end'"]),
    ({"homeostatic_target": "mean"}, ValueError, ["homeostatic_target", "'mean'", "'layer'"]),
    ({"homeostatic_target": 0.0}, ValueError, ["homeostatic_target", "0.0"]),
    ({"scale_range": (0.5, 0.9)}, ValueError, ["scale_range", "contain 1"]),
    ({"scale_range": 2.0}, TypeError, ["scale_range", "pair"]),
    ({"init_std": math.inf}, ValueError, ["init_std", "inf"]),
    ({"layers": []}, ValueError, ["layers", "empty"]),
    ({"layers": 1.5}, TypeError, ["layers", "1.5", "float"]),
    ({"layers": [None]}, TypeError, ["layers", "None"]),
]


@pytest.mark.parametrize(("arguments", "error", "words"), ERRORS, ids=[str(e[0]) for e in ERRORS])
def test_errors_name_argument_value_and_what_is_allowed(arguments, error, words):
    with pytest.raises(error) as caught:
        DropInConfig(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DropInConfig.dropin("64"), TypeError, "neurons must be an int, got '64'"),
        (lambda: DropInConfig.dropin(0), ValueError, "neurons must be at least 1, got 0"),
        (lambda: DropInConfig.plasticity(2.5), TypeError, "neurons must be an int, got 2.5"),
        (lambda: DropInConfig.compress(50), ValueError, r"target must lie in \(0.0, 1.0\], got 50"),
        (lambda: DropInConfig.compress(0), ValueError, r"target must lie in \(0.0, 1.0\], got 0"),
        (lambda: DropInConfig.continual_backprop("fast"), TypeError, "rate must be a number, got 'fast'"),
        (lambda: DropInConfig.continual_backprop(interval="x"), TypeError, "interval must be an int, got 'x'"),
    ],
)
def test_presets_refuse_what_they_cannot_mean(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("config", "acts"),
    [
        (DropInConfig(), True),
        (DropInConfig(max_fraction=0.0), False),
        (DropInConfig.dropin(3), True),
        (DropInConfig(max_fraction=0.0, synaptic_lr=0.1), True),
        (DropInConfig(max_fraction=0.0, old_plasticity=0.5), True),
    ],
)
def test_whether_a_configuration_does_more_than_watch(config, acts):
    assert config.acts is acts


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"drop_rate.*criterion"):
        DropInConfig.from_dict({"drop_rate": 0.1})
