"""A factor in the weights equals a factor in the forward pass."""

import pytest
import torch

from neuroplastic_kernels import synaptic_scale

RANGE = (0.1, 2.0)


def _step(weight, scale, activity, *, observed=1.0, active=None, **options):
    """One step of a single site whose neurons are so active. observed: [N] or a number, the weight of the average."""
    known = torch.as_tensor(observed).expand(len(scale))
    active = torch.ones(len(scale), dtype=torch.bool) if active is None else active
    settings = {"rate": 0.1, "target": 1.0, "scale_range": RANGE, **options}
    synaptic_scale([weight], [0], scale, activity * known, known, active, **settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_always_equal_the_unscaled_weights_times_the_factor(dtype):
    weight = torch.randn(5, 3, dtype=dtype)
    unscaled, scale, expected = weight.clone(), torch.ones(5), torch.ones(5, dtype=torch.float64)
    for _ in range(200):
        activity = torch.rand(5) * 2
        _step(weight, scale, activity)
        expected = (expected * (1 + 0.1 * (1.0 - activity.double()))).clamp(*RANGE)
    torch.testing.assert_close(scale.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight, unscaled * scale.to(dtype).unsqueeze(1), rtol=1e-4, atol=1e-6)


def test_in_half_precision_a_change_too_small_to_apply_is_not_recorded():
    weight = torch.randn(5, 64).bfloat16()
    before, scale = weight.clone(), torch.ones(5)
    for _ in range(100):
        _step(weight, scale, torch.linspace(0, 2, 5), rate=0.001)
    assert torch.equal(weight, before)
    assert scale.tolist() == [1.0] * 5


def test_the_factor_stays_in_its_range():
    weight, scale = torch.ones(3, 4), torch.ones(3)
    for _ in range(100):
        _step(weight, scale, torch.tensor([0.0, 2.0, 1.0]))
    torch.testing.assert_close(scale, torch.tensor([2.0, 0.1, 1.0]))
    torch.testing.assert_close(weight, scale.unsqueeze(1).expand(3, 4), rtol=1e-4, atol=0)


@pytest.mark.parametrize("target", [1.0, "layer"])
@pytest.mark.parametrize("reason", ["not finite", "never observed", "in reserve", "on target"])
def test_no_usable_error_means_no_change(reason, target):
    weight, scale, activity = torch.randn(4, 3), torch.rand(4) + 0.5, torch.full((4,), 3.0)
    before, options = (weight.clone(), scale.clone()), {}
    if reason == "not finite":
        activity[1] = float("nan")
        activity[:] = activity[1]
    elif reason == "never observed":
        options["observed"] = 0.0
    elif reason == "in reserve":
        options["active"] = torch.zeros(4, dtype=torch.bool)
    else:
        activity.fill_(1.0)
    _step(weight, scale, activity, target=target, **options)
    assert torch.equal(weight, before[0])
    assert torch.equal(scale, before[1])


def test_the_layer_target_is_the_mean_of_the_neurons_that_count():
    """Reserve slots and unobserved neurons keep their scale, and their numbers do not move the others'."""
    activity = torch.tensor([1.0, 3.0, 100.0, 100.0])
    weight, scale = torch.ones(4, 2), torch.ones(4)
    _step(
        weight,
        scale,
        activity,
        target="layer",
        observed=torch.tensor([0.5, 1.0, 0.0, 1.0]),
        active=torch.tensor([True, True, True, False]),
    )
    torch.testing.assert_close(scale, torch.tensor([1 + 0.1 * (2 - 1) / 2, 1 + 0.1 * (2 - 3) / 2, 1.0, 1.0]))


@pytest.mark.parametrize("target", [1.0, "layer"])
def test_sites_lie_where_their_firsts_say(target):
    """Each of two sites of a longer table changes as it would alone; what belongs to no site stays."""
    weights, scale, activity = [torch.randn(3, 2), torch.randn(2, 5, 3)], torch.rand(9) + 0.5, torch.rand(9)
    alone = [weight.clone() for weight in weights]
    before, expected, known = scale.clone(), scale.clone(), torch.full((9,), 0.3)
    firsts, all_neurons = [1, 6], torch.ones(9, dtype=torch.bool)
    options = {"rate": 0.1, "target": target, "scale_range": RANGE}
    synaptic_scale(weights, firsts, scale, activity * known, known, all_neurons, **options)
    for weight, first in zip(alone, firsts, strict=True):
        own = slice(first, first + len(weight))
        _step(weight, expected[own], activity[own], observed=0.3, target=target)
    assert all(torch.equal(a, b) for a, b in zip([*weights, scale], [*alone, expected], strict=True))
    assert (scale != before).nonzero().squeeze(1).tolist() == [1, 2, 3, 6, 7]
