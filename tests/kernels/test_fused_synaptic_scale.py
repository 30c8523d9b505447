"""All sites scaled in one launch equal each site scaled by the reference."""

import pytest
import torch

from neuroplastic_kernels import synaptic_scale

pytest.importorskip("triton")

RANGE = (0.1, 2.0)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def _sites(shapes, dtype, device="cpu"):
    weights = [torch.randn(shape, dtype=torch.float32).to(device, dtype) for shape in shapes]
    scales = [torch.empty(shape[0]).uniform_(0.2, 1.9).to(device) for shape in shapes]
    errors = [torch.randn(shape[0]).to(device) for shape in shapes]
    return weights, scales, errors


def _copies(tensors, device):
    return [tensor.to(device, copy=True) for tensor in tensors]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rate", [0.001, 0.5, 100.0])
def test_equals_the_reference(rate, dtype, device):
    weights, scales, errors = _sites([(5, 3), (1, 1), (20, 300), (3, 0)], dtype)
    errors[0][:3] = torch.tensor([float("nan"), float("inf"), 0.0])
    found = [_copies(weights, device), _copies(scales, device), _copies(errors, device)]
    synaptic_scale(*found, rate=rate, scale_range=RANGE, backend="fused")
    synaptic_scale(weights, scales, errors, rate=rate, scale_range=RANGE, backend="reference")
    for actual, expected in zip(found[0] + found[1], weights + scales, strict=True):
        torch.testing.assert_close(actual.cpu(), expected, rtol=TOLERANCE[expected.dtype], atol=0.0)


def test_no_usable_error_means_no_change(device):
    weights, scales, _ = _sites([(4, 3), (9, 5)], torch.float32, device)
    errors = [torch.full((4,), float("nan"), device=device), torch.zeros(9, device=device)]
    before = _copies(weights + scales, device)
    synaptic_scale(weights, scales, errors, rate=0.1, scale_range=RANGE, backend="fused")
    assert all(torch.equal(a, b) for a, b in zip(weights + scales, before, strict=True))


def test_strides_and_mixed_dtypes_do_not_matter(device):
    weights, scales, errors = _sites([(20, 30), (6, 7)], torch.float32, device)
    weights[1] = weights[1].bfloat16()
    plain = [_copies(weights, device), _copies(scales, device), _copies(errors, device)]
    strided = [
        [weight.T.contiguous().T for weight in weights],
        [torch.stack([scale, scale], 1)[:, 1] for scale in scales],
        [torch.stack([error, error], 1)[:, 0] for error in errors],
    ]
    for arguments in (plain, strided):
        synaptic_scale(*arguments, rate=0.1, scale_range=RANGE, backend="fused")
    for actual, expected in zip(strided[0] + strided[1], plain[0] + plain[1], strict=True):
        assert torch.equal(actual, expected)


def test_no_sites_is_no_work(device):
    synaptic_scale([], [], [], rate=0.1, scale_range=RANGE, backend="fused")


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    sites = _sites([(5, 3)], torch.float32, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        synaptic_scale(*sites, rate=0.1, scale_range=RANGE, backend="fused")
    finally:
        torch.cuda.set_sync_debug_mode("default")
