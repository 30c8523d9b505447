"""The fused rebirth is the reference: the same random bits, the same values, and nothing else touched."""

import pytest
import torch
from neuron_cases import INITS, N, chosen_mask, copy_site, map_tensors, random_site

from neuroplastic_kernels import neuron_reinit
from neuroplastic_kernels.neurons import StateSlice
from neuroplastic_kernels.reference import philox as reference_philox

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from neuroplastic_kernels.fused import philox as fused_philox  # noqa: E402
from neuroplastic_kernels.fused import typed_memory  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A few float32 roundings; one rounding to a half type may then go the other way.
TOLERANCE = {torch.float32: (3e-6, 1e-6), torch.bfloat16: (2.0**-7, 1e-6), torch.float16: (2.0**-10, 1e-6)}


def _on(site, device):
    return map_tensors(site, lambda tensor: tensor.to(device))


def _assert_like_reference(sites, device, **options):
    """The fused form does to these sites what the reference does, and leaves alone, bit for bit, what that leaves alone."""
    found, expected = ([_on(copy_site(site), where) for site in sites] for where in (device, "cpu"))
    neuron_reinit(found, backend="fused", **options)
    neuron_reinit(expected, backend="reference", **options)
    for before, after, wanted in zip(sites, found, expected, strict=True):
        for old, new, goal in zip(before.written(), after.written(), wanted.written(), strict=True):
            new, unchanged = new.cpu(), goal == old
            assert torch.equal(new[unchanged], old[unchanged])
            rtol, atol = TOLERANCE[goal.dtype]
            torch.testing.assert_close(new, goal, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outgoing", ["zero", "keep"])
@pytest.mark.parametrize("init", INITS)
def test_every_rule_and_dtype(init, outgoing, dtype, device):
    sites = [
        random_site(chosen_mask(2, 5, 11), dtype=dtype, site=3),
        random_site(chosen_mask(0, n=3), dtype=dtype, site=8, n=3, d=1, m=2, bias=False),
    ]
    _assert_like_reference(sites, device, init=init, outgoing=outgoing, seed=2**63 + 5, event=9, std=0.02)


@pytest.mark.parametrize("init", INITS)
def test_several_tiles(init, device):
    n, d, m = 70, 130, 35
    sites = [random_site(chosen_mask(0, 7, 8, 40, 69, n=n), n=n, d=d, m=m)]
    _assert_like_reference(sites, device, init=init, seed=-1, event=2**31)


@pytest.mark.parametrize("init", [init for init in INITS if init != "split"])
def test_everyone_may_be_reborn(init, device):
    _assert_like_reference([random_site(chosen_mask(*range(N)))], device, init=init)


@pytest.mark.parametrize("init", INITS)
def test_nobody_chosen_changes_nothing(init, device):
    sites = [_on(random_site(chosen_mask()), device) for _ in range(2)]
    before = [copy_site(site) for site in sites]
    neuron_reinit(sites, init=init, backend="fused")
    for site, old in zip(sites, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(site.written(), old.written(), strict=True))
    neuron_reinit([], init=init, backend="fused")


@pytest.mark.parametrize("init", ["fan_in", "layer"])
def test_forty_eight_sites_at_once(init, device):
    sites = [random_site(chosen_mask(*([index % N] if index % 3 else [])), site=index) for index in range(48)]
    _assert_like_reference([site._replace(state=site.state[:1]) for site in sites], device, init=init, seed=3)


def test_dtypes_may_be_mixed_within_a_site(device):
    site = random_site(chosen_mask(1, 4))
    site = site._replace(up_weight=site.up_weight.bfloat16(), down_bias=site.down_bias.half())
    _assert_like_reference([site], device, init="fan_in", seed=1)


@pytest.mark.parametrize("init", INITS)
def test_strides_do_not_matter(init, device):
    """Transposed weights, every second element of a buffer, and tensors that start at odd addresses."""

    def respaced(tensor):
        if not tensor.is_floating_point():
            return tensor
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype)[..., 1::2]
        return wide.copy_(tensor)

    def transposed(tensor):
        return tensor.T.contiguous().T if tensor.ndim == 2 else tensor

    site = random_site(chosen_mask(2, 5, 11))
    for change in (respaced, transposed):
        changed = [map_tensors(site, lambda tensor, change=change: change(tensor.to(device)))]
        plain = [_on(copy_site(site), device)]
        for sites in (changed, plain):
            neuron_reinit(sites, init=init, seed=4, backend="fused")
        for found, expected in zip(changed[0].written(), plain[0].written(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_factored_state(device):
    """One number per neuron, as [N, 1] or [1, N]."""
    state = (
        StateSlice(torch.rand(N, 1), 0, "mean"),
        StateSlice(torch.rand(1, N), 1, "mean"),
        StateSlice(torch.rand(N), 0, "zero"),
    )
    _assert_like_reference([random_site(chosen_mask(3, 4))._replace(state=state)], device)


def test_the_same_call_gives_the_same_bits(device):
    runs = [_on(random_site(chosen_mask(2, 5)), device) for _ in range(2)]
    for site in runs:
        neuron_reinit([site], init="layer", backend="fused")
    assert all(torch.equal(a, b) for a, b in zip(runs[0].written(), runs[1].written(), strict=True))


def test_split_without_donors_is_refused_before_anything_is_written(device):
    good, bad = (_on(random_site(chosen_mask(1)), device) for _ in range(2))
    before = copy_site(good)
    with pytest.raises(ValueError, match=r"split.*donors"):
        neuron_reinit([good, bad._replace(donors=None)], init="split", backend="fused")
    assert all(torch.equal(a, b) for a, b in zip(good.written(), before.written(), strict=True))


def test_float64_is_refused_by_the_fused_form_and_taken_by_auto(device):
    site = _on(random_site(chosen_mask(1), dtype=torch.float64), device)
    with pytest.raises(RuntimeError, match=r"float32.*float64.*backend='auto'"):
        neuron_reinit([site], backend="fused")
    neuron_reinit([site])
    assert not site.down_weight[:, 1].any()


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


@triton.jit
def _round_kernel(source, stored, rounded, address, dtype, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(source + place)
    typed_memory.store_float(tl.load(address), place, value, place < BLOCK, dtype)
    tl.store(rounded + place, typed_memory.round_as(value, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_rounded_as_torch_rounds_them(dtype, device):
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.00390625, 1.01171875, 3.4e38, 65519.0, 1e-7]
    source = torch.cat([torch.tensor(special), torch.randn(1014)]).to(device)  # two of them are ties in bfloat16
    stored, rounded = torch.empty(1024, dtype=dtype, device=device), torch.empty(1024, device=device)
    address = torch.tensor([stored.data_ptr()], device=device)
    _round_kernel[(1,)](source, stored, rounded, address, typed_memory.DTYPE_CODES[dtype], BLOCK=1024)
    torch.testing.assert_close(stored, source.to(dtype), rtol=0.0, atol=0.0, equal_nan=True)
    torch.testing.assert_close(rounded, source.to(dtype).float(), rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    sites = [_on(random_site(chosen_mask(2)), "cuda")]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for init in INITS:
            neuron_reinit(sites, init=init, backend="fused")
    finally:
        torch.cuda.set_sync_debug_mode("default")
