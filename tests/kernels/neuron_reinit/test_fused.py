"""The fused rebirth is the reference: the same random bits, the same values, and nothing else touched."""

import pytest
import torch
from neuron_cases import (
    INITS,
    N,
    chain,
    chosen_mask,
    convolution_site,
    copy_site,
    gated_site,
    map_tensors,
    random_site,
    recurrent_site,
    twins,
)

from neuroplastic_kernels import neuron_reinit
from neuroplastic_kernels.neuron_reinit.neurons import Incoming, StateSlice, templates

pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A few float32 roundings; one rounding to a half type may then go the other way.
TOLERANCE = {torch.float32: (3e-6, 1e-6), torch.bfloat16: (2.0**-7, 1e-6), torch.float16: (2.0**-10, 1e-6)}


def _on(site, device):
    return map_tensors(site, lambda tensor: tensor.to(device))


def _assert_like_reference(sites, device, *, workspace=None, **options):
    """The fused form does to these sites what the reference does, and leaves alone, bit for bit, what that leaves alone."""
    found, expected = twins(sites, device), twins(sites, "cpu")
    neuron_reinit(found, backend="fused", workspace=workspace, **options)
    neuron_reinit(expected, backend="reference", **options)
    for before, after, wanted in zip(sites, found, expected, strict=True):
        for old, new, goal in zip(before.written(), after.written(), wanted.written(), strict=True):
            new, unchanged = new.cpu(), goal == old
            assert torch.equal(new[unchanged], old[unchanged])
            rtol, atol = TOLERANCE[goal.dtype]
            torch.testing.assert_close(new, goal, rtol=rtol, atol=atol)
    return found


@pytest.mark.parametrize(("outgoing", "dtype"), [*(("zero", dtype) for dtype in DTYPES), ("keep", torch.float32)])
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


@pytest.mark.parametrize("init", INITS)
def test_several_sets_of_incoming_rows(init, device):
    sites = [gated_site(chosen_mask(2, 5), site=1), gated_site(chosen_mask(3), bias=False)]
    _assert_like_reference(sites, device, init=init, seed=7, event=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("init", ["fan_in", "layer"])
def test_tensors_of_more_than_two_dimensions(init, layout, device):
    sites = [convolution_site(chosen_mask(2, 5), layout=layout), random_site(chosen_mask(4), site=1)]
    _assert_like_reference(sites, device, init=init, seed=7, event=1)


@pytest.mark.parametrize("init", ["normal", "layer"])
def test_wide_layers_are_modelled_on_a_sample(init, device):
    """One with survivors in the sample, one without, one without survivors: with numbers in reach that must not count."""
    n = 300
    sampled = templates(torch.ones(n, dtype=torch.bool))
    gone = chosen_mask(3, 150, 299, n=n)
    for survivors in (~gone, ~sampled & ~gone, torch.zeros(n, dtype=torch.bool)):
        site = random_site(gone, n=n, d=3, m=2)._replace(survivors=survivors)
        _assert_like_reference([site], device, init=init)
    site = random_site(gone, n=n, d=3, m=2)
    for state in site.state:
        state.tensor.transpose(0, state.dim)[~sampled & ~gone] = float("nan")
    neuron_reinit([found := _on(site, device)], init=init, backend="fused")
    assert all(torch.isfinite(state.tensor.transpose(0, state.dim)[3]).all() for state in found.state)


@pytest.mark.parametrize("init", ["normal", "layer"])
def test_sites_that_share_weights_find_what_the_earlier_left(init, device):
    sites = chain(chosen_mask(1, 4), chosen_mask(4, 5), chosen_mask(0, 11))
    for order in (sites, [sites[1], sites[2], sites[0]]):
        _assert_like_reference(order, device, init=init, seed=3)
    _assert_like_reference([recurrent_site(chosen_mask(1, 4))], device, init=init)


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


def test_forty_eight_sites_at_once(device):
    masks = [chosen_mask(*([index % 4] if index % 3 else []), n=4) for index in range(48)]
    sites = [random_site(mask, n=4, d=2, m=2, site=index) for index, mask in enumerate(masks)]
    sites = [s._replace(state=s.state[4:], mean_output=s.mean_output + s.site) for s in sites]
    _assert_like_reference(sites, device, init="layer", seed=3)


def test_dtypes_may_be_mixed_within_a_site(device):
    site = random_site(chosen_mask(1, 4))
    weight, bias = site.incoming[0]
    site = site._replace(incoming=(Incoming(weight.bfloat16(), bias),), down_bias=site.down_bias.half())
    _assert_like_reference([site], device, init="fan_in", seed=1)


@pytest.mark.parametrize("init", ["layer", "split"])
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
    plain, *changed = (
        [map_tensors(site, lambda tensor, change=change: change(tensor.to(device, copy=True)))]
        for change in (torch.clone, respaced, transposed)
    )
    for sites in (plain, *changed):
        neuron_reinit(sites, init=init, seed=4, backend="fused")
    for sites in changed:
        for found, expected in zip(sites[0].written(), plain[0].written(), strict=True):
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


@pytest.mark.parametrize("missing", ["donors", "down_weight"])
def test_a_split_without_what_it_needs_is_refused_before_anything_is_written(missing, device):
    good, bad = (_on(random_site(chosen_mask(1)), device) for _ in range(2))
    before = copy_site(good)
    with pytest.raises(ValueError, match=rf"split.*{missing}"):
        neuron_reinit([good, bad._replace(**{missing: None})], init="split", backend="fused")
    assert all(torch.equal(a, b) for a, b in zip(good.written(), before.written(), strict=True))


def test_float64_is_refused_by_the_fused_form_and_taken_by_auto(device):
    site = _on(random_site(chosen_mask(1), dtype=torch.float64), device)
    with pytest.raises(RuntimeError, match=r"float32.*float64.*backend='auto'"):
        neuron_reinit([site], backend="fused")
    neuron_reinit([site])
    assert not site.down_weight[:, 1].any()


@pytest.mark.parametrize("init", INITS)
def test_the_smallest_sites(init, device):
    """One neuron, no inputs, no state, no neurons at all."""
    one = random_site(chosen_mask(n=1), n=1, d=1, m=1)
    bare = random_site(chosen_mask(2), bias=False)._replace(mean_output=None, state=())
    nobody = random_site(chosen_mask(n=0), n=0)
    deaf = random_site(chosen_mask(2), d=0)
    _assert_like_reference([one, bare, nobody] if init == "layer" else [one, bare, nobody, deaf], device, init=init)
    if init != "split":
        all_neurons = one._replace(mask=~one.mask, survivors=one.mask)
        _assert_like_reference([all_neurons, bare], device, init=init)


def test_a_workspace_follows_the_tensors(device):
    """The same tensors with other masks, others in their place, other rules, and fewer of them."""
    workspace, sites = {}, [random_site(chosen_mask(1, 3)), gated_site(chosen_mask(2), site=1)]
    sites = [site._replace(state=site.state[1:2]) for site in sites]
    for options in ({"init": "layer"}, {"init": "layer", "outgoing": "keep"}, {"init": "normal"}):
        for given in (sites[::-1], sites[:1]):
            _assert_like_reference(given, device, workspace=workspace, **options)
    found = _assert_like_reference(sites, device, workspace=workspace)
    tables = dict(workspace)
    mask = chosen_mask(0, 7).to(device)
    before, changed = twins(found, "cpu"), [site._replace(mask=mask, survivors=~mask) for site in found]
    neuron_reinit(changed, backend="fused", workspace=workspace, event=4)
    expected = [site._replace(mask=mask.cpu(), survivors=~mask.cpu()) for site in before]
    neuron_reinit(expected, event=4)
    assert all(workspace[key] is held for key, held in tables.items())
    for one, other in zip(changed, expected, strict=True):
        for new, goal in zip(one.written(), other.written(), strict=True):
            torch.testing.assert_close(new.cpu(), goal)


def test_autograd_learns_what_was_written(device):
    site = _on(random_site(chosen_mask(1)), device)
    weight = torch.nn.Parameter(site.incoming[0].weight)
    site = site._replace(incoming=(Incoming(weight.detach(), site.incoming[0].bias),))
    before = weight._version, *(tensor._version for tensor in site.written())
    neuron_reinit([site], backend="fused")
    after = weight._version, *(tensor._version for tensor in site.written())
    assert all(new > old for old, new in zip(before, after, strict=True))


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    sites = [_on(random_site(chosen_mask(2)), "cuda")]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for init in INITS:
            neuron_reinit(sites, init=init, backend="fused")
    finally:
        torch.cuda.set_sync_debug_mode("default")
