"""Random numbers inside kernels are those of the reference."""

import pytest
import torch

from neuroplastic_kernels.common import philox as reference_philox

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from neuroplastic_kernels.common import fused_philox as fused_philox  # noqa: E402


@triton.jit
def _draw_kernel(index, uniforms, normals, seed, event, site, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    counter = tl.load(index + place)
    tl.store(uniforms + place, fused_philox.uniform(seed.to(tl.int64), counter, event, site, 1))
    tl.store(normals + place, fused_philox.normal(seed.to(tl.int64), counter, event, site, 0))


@pytest.mark.parametrize("seed", [3, -(2**63), 2**63 - 1])
def test_random_numbers_are_those_of_the_reference(seed, device):
    index = torch.cat([torch.arange(512), 2**32 - 1 - torch.arange(512)])
    uniforms, normals = torch.empty(2, 1024, device=device)
    _draw_kernel[(1,)](index.to(device), uniforms, normals, seed, 2**31 + 7, 5, BLOCK=1024)
    assert torch.equal(uniforms.cpu(), reference_philox.uniform(seed, index, 2**31 + 7, 5, 1))
    torch.testing.assert_close(
        normals.cpu(), reference_philox.normal(seed, index, 2**31 + 7, 5, 0), rtol=1e-5, atol=2e-6
    )
