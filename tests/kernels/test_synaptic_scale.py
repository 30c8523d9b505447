"""A factor in the weights equals a factor in the forward pass."""

import pytest
import torch

from neuroplastic_kernels import synaptic_scale

RANGE = (0.1, 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_always_equal_the_unscaled_weights_times_the_factor(dtype):
    weight = torch.randn(5, 3, dtype=dtype)
    unscaled, scale, expected = weight.clone(), torch.ones(5), torch.ones(5, dtype=torch.float64)
    for _ in range(200):
        error = torch.randn(5)
        synaptic_scale([weight], [scale], [error], rate=0.1, scale_range=RANGE)
        expected = (expected * (1 + 0.1 * error.double())).clamp(*RANGE)
    torch.testing.assert_close(scale.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight, unscaled * scale.to(dtype).unsqueeze(1), rtol=1e-4, atol=1e-6)


def test_in_half_precision_a_change_too_small_to_apply_is_not_recorded():
    weight = torch.randn(5, 64).bfloat16()
    before, scale = weight.clone(), torch.ones(5)
    for _ in range(100):
        synaptic_scale([weight], [scale], [torch.linspace(-1, 1, 5)], rate=0.001, scale_range=RANGE)
    assert torch.equal(weight, before)
    assert scale.tolist() == [1.0] * 5


def test_the_factor_stays_in_its_range():
    weights = [torch.ones(2, 3), torch.ones(1, 4)]
    scales = [torch.ones(2), torch.ones(1)]
    for _ in range(100):
        synaptic_scale(weights, scales, [torch.tensor([1.0, -1.0]), torch.tensor([0.0])], rate=0.1, scale_range=RANGE)
    torch.testing.assert_close(scales[0], torch.tensor([2.0, 0.1]))
    torch.testing.assert_close(weights[0], torch.tensor([[2.0] * 3, [0.1] * 3]), rtol=1e-4, atol=0)
    assert torch.equal(weights[1], torch.ones(1, 4))


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.0])
def test_no_usable_error_means_no_change(error):
    weight, scale = torch.randn(4, 3), torch.rand(4) + 0.5
    before = weight.clone(), scale.clone()
    synaptic_scale([weight], [scale], [torch.full((4,), error)], rate=0.1, scale_range=RANGE)
    assert torch.equal(weight, before[0])
    assert torch.equal(scale, before[1])
