"""Values of several dtypes in one kernel."""

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from neuroplastic_kernels.common import typed_memory  # noqa: E402


@triton.jit
def _round_kernel(source, stored, rounded, address, dtype, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(source + place)
    typed_memory.store_float(tl.load(address), place, value, place < BLOCK, dtype)
    tl.store(rounded + place, typed_memory.round_as(value, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_rounded_as_torch_rounds_them(dtype, device):
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.00390625, 1.01171875, 3.4e38, 65519.0, 1e-7]
    source = torch.cat([torch.tensor(special), torch.randn(1014)]).to(device)  # two of them are ties in bfloat16
    stored, rounded = torch.empty(1024, dtype=dtype, device=device), torch.empty(1024, device=device)
    address = torch.tensor([stored.data_ptr()], device=device)
    _round_kernel[(1,)](source, stored, rounded, address, typed_memory.DTYPE_CODES[dtype], BLOCK=1024)
    torch.testing.assert_close(stored, source.to(dtype), rtol=0.0, atol=0.0, equal_nan=True)
    torch.testing.assert_close(rounded, source.to(dtype).float(), rtol=0.0, atol=0.0, equal_nan=True)
