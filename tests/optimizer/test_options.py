"""Every bad option is refused with its name, what was given and what is allowed."""

import math

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from hf_neuroplastic.optimizer.options import tell_idle

BAD = {
    "lr": [-1.0, math.nan, math.inf, "fast", None, torch.ones(2), torch.tensor(-1.0), torch.tensor(math.nan), True],
    "base": ["adam", None, 3],
    "betas": [(0.9,), (0.9, 1.0), (-0.1, 0.9), 0.9, (math.nan, 0.9)],
    "trace_decay": [1.0, -0.1, None],
    "signal_weights": [(0.4, 0.6), (0.4, 0.4, -0.2), 1.0],
    "alpha_range": [(2.0, 0.2), (-1.0, 2.0), (0.2, math.inf), 1.0],
    "plasticity_scale": [-1.0, math.nan],
    "strength": [-0.5, "full"],
    "warmup_steps": [-1, None],
    "activity": ["abs", ["rms"]],
    "statistics": ["none", 1],
    "skip_nonfinite": [1, None],
    "max_update_norm": [0.0, -1.0, math.nan, "no"],
    "target_rms": [-0.1],
    "homeostatic_rate": [-0.1],
    "eps": [0.0, -1e-8],
    "weight_decay": [-0.1, math.inf],
    "decoupled_weight_decay": ["yes", 1],
    "maximize": [1, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_option_is_named(name, value):
    p = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=rf"^{name} must be .*; got .* in group 0$") as error:
        NeuroPlastic([p], **{name: value})
    assert repr(value) in str(error.value)


def test_a_bad_option_of_a_later_group_names_the_group_and_leaves_it_out():
    optimizer = NeuroPlastic([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=r"strength must be a number >= 0; .* got -1 in group 1"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "strength": -1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'reference', 'native', 'fused', got 'cuda'"),
        ({"momentum": 0.9}, TypeError, "momentum"),
        ({"base": "gradient", "statistics": "previous"}, ValueError, "statistics must be 'exact' for base 'gradient'"),
        (
            {"base": "gradient", "activity": "rms"},
            ValueError,
            "activity must be 'trace' for base 'gradient', .* 'adamw'",
        ),
    ],
)
def test_other_bad_arguments(options, error, words):
    with pytest.raises(error, match=words):
        NeuroPlastic([torch.nn.Parameter(torch.zeros(1))], **options)


@pytest.mark.parametrize(
    ("base", "betas", "decoupled", "activity", "statistics"),
    [
        ("gradient", (0.9, 0.99), False, "trace", "exact"),
        ("adamw", (0.9, 0.999), True, "rms", "previous"),
        ("momentum", (0.9, 0.99), False, "rms", "previous"),
    ],
)
def test_defaults_follow_the_base(base, betas, decoupled, activity, statistics):
    group = NeuroPlastic([torch.nn.Parameter(torch.zeros(1))], base=base, max_update_norm=math.inf).param_groups[0]
    assert group["betas"] == betas
    assert group["decoupled_weight_decay"] is decoupled
    assert (group["activity"], group["statistics"]) == (activity, statistics)
    assert group["max_update_norm"] is None


def flattened(optimizer, group=0, size=9):
    """As DeepSpeed's ZeRO does, which then steps one group at a time."""
    flat = torch.nn.Parameter(torch.zeros(size))
    flat.grad = torch.ones(size)
    optimizer.param_groups[group]["params"] = [flat]
    optimizer.param_groups = [optimizer.param_groups[group]]
    return flat


@pytest.mark.parametrize("change", [None, "state loaded", {"strength": 0.5}, {"strength": 0.0, "max_grad_norm": 1.0}])
@pytest.mark.parametrize("group", [0, 1])
def test_groups_that_became_one_vector_are_refused(group, change, caplog):
    params = [torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.zeros(3))]
    optimizer = NeuroPlastic([{"params": params}, {"params": [torch.nn.Parameter(torch.zeros(3, 2))]}])
    flat = flattened(optimizer, group)
    if change == "state loaded":
        optimizer.load_state_dict(optimizer.state_dict())
    elif change:
        optimizer.param_groups[0].update(change)
    words = rf"was given {2 - group} tensors? and holds one vector of 9 .*ZeRO.*DDP.*fully_shard.*strength=0"
    with pytest.raises(TypeError, match=words):
        optimizer.step()
    assert not flat.any()
    assert not caplog.text


def test_the_bare_base_steps_a_vector_of_many_tensors():
    optimizer = NeuroPlastic([torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.zeros(3))], strength=0.0)
    flat = flattened(optimizer)
    optimizer.step()
    assert flat.all()


def test_ordinary_vectors_are_no_flattened_ones(caplog):
    """A bias of a group of its own, also where it is replaced or is what is left of a group."""
    bias, other = torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(7))
    optimizer = NeuroPlastic([{"params": [bias]}, {"params": [torch.nn.Parameter(torch.zeros(3, 2)), other]}])
    optimizer.param_groups[1]["params"] = [other]
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(torch.zeros(9))]
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer.step()
    assert not caplog.text


def test_vectors_of_fsdp_are_refused_and_long_ones_told(caplog):
    part = torch.nn.Parameter(torch.zeros(10))
    part._fsdp_flattened = True
    with pytest.raises(TypeError, match=r"vector of FSDP1 .*DDP.*fully_shard.*strength=0"):
        NeuroPlastic([part])
    assert len(NeuroPlastic([part], strength=0.0).param_groups) == 1
    NeuroPlastic([torch.nn.Parameter(torch.zeros(5000))])
    assert "a group holds one vector of 5000 elements" in caplog.text
    assert "strength=0" in caplog.text


def test_a_step_without_any_gradient_says_so_once(caplog):
    tell_idle.cache_clear()
    optimizer = NeuroPlastic([torch.nn.Parameter(torch.zeros(3, 2))])
    optimizer.step()
    optimizer.step()
    assert caplog.text.count("no parameter of NeuroPlastic has a gradient") == 1
