"""Every bad option is refused with its name, what was given and what is allowed."""

import math

import pytest
import torch

from hf_neuroplastic import NeuroPlastic

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


def test_tensors_that_were_flattened_are_refused_or_told(caplog):
    class FlatParameter(torch.nn.Parameter):
        """As torch's FSDP names its own."""

    with pytest.raises(TypeError, match=r"FlatParameter of FSDP.*use_orig_params=True"):
        NeuroPlastic([FlatParameter(torch.zeros(10))])
    params = [torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.zeros(3))]
    optimizer = NeuroPlastic(params)
    flat = torch.nn.Parameter(torch.zeros(9))
    flat.grad = torch.ones(9)
    optimizer.param_groups[0]["params"] = [flat]  # as DeepSpeed's ZeRO does
    with pytest.raises(TypeError, match=r"was given 2 tensors and holds one vector of 9 elements.*DeepSpeed's ZeRO"):
        optimizer.step()
    assert not flat.any()
    assert not caplog.text
    NeuroPlastic([torch.nn.Parameter(torch.zeros(5000))])
    assert "a group holds one vector of 5000 elements" in caplog.text
