"""Rebirth touches exactly the chosen slices, with numbers that depend on nothing but their logical place."""

import math

import pytest
import torch
from neuron_cases import INITS, D, N, chosen_mask, convolution_site, copy_site, gated_site, random_site

from neuroplastic_kernels import neuron_reinit
from neuroplastic_kernels.common import philox
from neuroplastic_kernels.neuron_reinit.neurons import sample_groups, templates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("init", INITS)
def test_nothing_outside_the_chosen_slices_changes(init, bias, dtype):
    tensors = random_site(chosen_mask(2, 5, 11), bias=bias, dtype=dtype)
    before = copy_site(tensors)
    neuron_reinit([tensors], init=init, seed=3, event=9)
    kept = tensors.survivors.clone()
    assert torch.equal(tensors.incoming[0].weight[kept], before.incoming[0].weight[kept])
    if bias:
        assert torch.equal(tensors.incoming[0].bias[kept], before.incoming[0].bias[kept])
    if init == "split":
        kept[tensors.donors[tensors.mask]] = False
    assert torch.equal(tensors.down_weight[:, kept], before.down_weight[:, kept])
    for found, old in zip(tensors.state, before.state, strict=True):
        index = (~tensors.mask).nonzero().squeeze(1)
        assert torch.equal(found.tensor.index_select(found.dim, index), old.tensor.index_select(old.dim, index))


@pytest.mark.parametrize("init", INITS)
def test_nobody_chosen_changes_nothing(init):
    tensors = random_site(chosen_mask())
    before = copy_site(tensors)
    neuron_reinit([tensors], init=init)
    for found, old in zip(tensors, before, strict=True):
        if isinstance(found, torch.Tensor):
            assert torch.equal(found, old)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(tensors.state, before.state, strict=True))


def test_state_restarts_at_zero_or_at_the_survivors_mean():
    tensors = random_site(chosen_mask(0, 4))
    before = copy_site(tensors)
    neuron_reinit([tensors])
    for found, old in zip(tensors.state, before.state, strict=True):
        chosen = found.tensor.transpose(0, found.dim)[tensors.mask]
        kept = old.tensor.transpose(0, found.dim)[tensors.survivors]
        expected = torch.zeros_like(chosen) if found.fill == "zero" else kept.mean(0, keepdim=True).expand_as(chosen)
        torch.testing.assert_close(chosen, expected)


def test_the_mean_output_moves_into_the_next_bias():
    tensors = random_site(chosen_mask(1, 6))
    before = copy_site(tensors)
    neuron_reinit([tensors])
    gone = before.down_weight[:, tensors.mask] @ before.mean_output[tensors.mask]
    torch.testing.assert_close(tensors.down_bias, before.down_bias + gone)
    assert not tensors.down_weight[:, tensors.mask].any()


def test_outgoing_keep_leaves_the_next_layer_alone():
    tensors = random_site(chosen_mask(1, 6))
    before = copy_site(tensors)
    neuron_reinit([tensors], outgoing="keep")
    assert torch.equal(tensors.down_weight, before.down_weight)
    assert torch.equal(tensors.down_bias, before.down_bias)
    assert not torch.equal(tensors.incoming[0].weight, before.incoming[0].weight)


@pytest.mark.parametrize(
    ("init", "mean", "std"), [("normal", 0.0, 0.02), ("fan_in", 0.0, 1 / math.sqrt(3 * 96)), ("layer", 2.0, 0.5)]
)
def test_fresh_rows_have_the_promised_distribution(init, mean, std):
    n, d, half = 256, 96, 128
    tensors = random_site(torch.arange(n) < half, n=n, d=d)
    weight, bias = tensors.incoming[0]
    weight[half:] = (weight[half:] - weight[half:].mean()) * (0.5 / weight[half:].std()) + 2.0
    expected_bias = bias[half:].mean().item() if init == "layer" else 0.0
    neuron_reinit([tensors], init=init, std=0.02, seed=5)
    fresh = weight[:half]
    assert abs(fresh.mean().item() - mean) < 4 * std / math.sqrt(fresh.numel())
    assert abs(fresh.std().item() / std - 1) < 4 / math.sqrt(2 * fresh.numel())
    torch.testing.assert_close(bias[:half], torch.full((half,), expected_bias), rtol=1e-4, atol=1e-6)


def test_split_preserves_the_function_and_its_twins_differ_in_gradient():
    tensors = random_site(chosen_mask(3, 8))
    tensors = tensors._replace(mean_output=torch.zeros(N))
    donors = tensors.donors[tensors.mask]
    x = torch.randn(20, D, dtype=torch.float64)

    def output(t, silenced=()):
        z = torch.relu(x @ t.incoming[0].weight.double().T + t.incoming[0].bias.double())
        z[:, list(silenced)] = 0.0
        return z @ t.down_weight.double().T + t.down_bias.double()

    expected = output(tensors, silenced=(3, 8))
    neuron_reinit([tensors], init="split")
    torch.testing.assert_close(output(tensors), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(tensors.incoming[0].weight[tensors.mask], tensors.incoming[0].weight[donors])
    assert not torch.equal(tensors.down_weight[:, tensors.mask], tensors.down_weight[:, donors])


@pytest.mark.parametrize(("missing", "words"), [("donors", r"split.*donors"), ("down_weight", r"split.*down_weight")])
def test_a_split_without_what_it_needs_is_refused_before_anything_is_written(missing, words):
    good, bad = random_site(chosen_mask(1)), random_site(chosen_mask(1))._replace(**{missing: None})
    before = copy_site(good)
    with pytest.raises(ValueError, match=words):
        neuron_reinit([good, bad], init="split")
    assert all(torch.equal(a, b) for a, b in zip(good.written(), before.written(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_belong_to_places_not_to_the_order_of_work(dtype):
    """A neuron gets the same weights whether reborn alone or in company, in any list of sites; others for another event."""

    def row(mask, sites_before=0, **keys):
        tensors = random_site(mask, dtype=dtype, site=keys.pop("site", 4))
        neuron_reinit([random_site(chosen_mask(1)) for _ in range(sites_before)] + [tensors], init="fan_in", **keys)
        return tensors.incoming[0].weight[5]

    base = row(chosen_mask(5), seed=1, event=2)
    assert torch.equal(base, row(chosen_mask(0, 5, 9), seed=1, event=2))
    assert torch.equal(base, row(chosen_mask(5), sites_before=3, seed=1, event=2))
    for other in ({"seed": 2, "event": 2}, {"seed": 1, "event": 3}, {"seed": 1, "event": 2, "site": 5}):
        assert not torch.equal(base, row(chosen_mask(5), **other))


@pytest.mark.parametrize("init", INITS[:3])
def test_everyone_may_be_reborn(init):
    tensors = random_site(chosen_mask(*range(N)))
    neuron_reinit([tensors], init=init)
    assert not tensors.down_weight.any()
    for found in (tensors.incoming[0].weight, *(state.tensor for state in tensors.state)):
        assert torch.isfinite(found).all()


def test_every_set_of_incoming_rows_has_numbers_of_its_own():
    site, plain = gated_site(chosen_mask(2, 7), site=6), random_site(chosen_mask(2, 7), site=6)
    neuron_reinit([site, plain], std=0.5, seed=3, event=8)
    chosen = site.mask.nonzero().squeeze(1)
    index = chosen.unsqueeze(1) * D + torch.arange(D)
    for up, word in zip(site.incoming, (0, 3), strict=True):
        assert torch.equal(up.weight[chosen], 0.5 * philox.normal(3, index, 8, 6, word))
        assert not up.bias[chosen].any()
    assert torch.equal(site.incoming[0].weight, plain.incoming[0].weight)


def test_every_set_of_incoming_rows_is_modelled_on_itself_and_split_from_the_donor():
    modelled, split = (gated_site(chosen_mask(2, 7)) for _ in range(2))
    neuron_reinit([modelled], init="layer")
    neuron_reinit([split], init="split")
    donors = split.donors[split.mask]
    for up, other in zip(modelled.incoming, split.incoming, strict=True):
        expected = up.bias[modelled.survivors].mean()
        torch.testing.assert_close(up.bias[modelled.mask], expected.expand(2))
        assert torch.equal(other.weight[split.mask], other.weight[donors])
        assert torch.equal(other.bias[split.mask], other.bias[donors])


@pytest.mark.parametrize("init", [init for init in INITS if init != "split"])
def test_a_convolution_is_treated_like_its_rows_laid_flat(init):
    site = convolution_site(chosen_mask(1, 4))
    flat = copy_site(site)
    flat = flat._replace(
        incoming=(flat.incoming[0]._replace(weight=flat.incoming[0].weight.flatten(1)),),
        state=tuple(s._replace(tensor=s.tensor.transpose(0, s.dim).reshape(N, -1), dim=0) for s in flat.state),
    )
    neuron_reinit([site, flat], init=init)
    assert torch.equal(site.incoming[0].weight.flatten(1), flat.incoming[0].weight)
    for found, expected in zip(site.state, flat.state, strict=True):
        torch.testing.assert_close(found.tensor.transpose(0, found.dim).reshape(N, -1), expected.tensor)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 255, 256])
def test_small_layers_are_modelled_on_all_survivors(n):
    survivors = torch.rand(n) < 0.7
    survivors[: n // 2] |= n < 3
    assert torch.equal(templates(survivors), survivors if survivors.any() else torch.ones(n, dtype=torch.bool))


@pytest.mark.parametrize("n", [257, 1000, 3072, 4099])
def test_wide_layers_are_modelled_on_a_sample(n):
    """Sixteen whole groups of eight neighbours, from the first on, no gap more than a group longer than another."""
    sampled = templates(torch.ones(n, dtype=torch.bool)).nonzero().squeeze(1).view(16, 8)
    assert torch.equal(sampled, sampled[:, :1] + torch.arange(8))
    first = sampled[:, 0]
    assert first[0] == 0
    assert not (first % 8).any()
    gaps = first.diff(append=torch.tensor([n // 8 * 8]))
    assert gaps.max() - gaps.min() <= 8


def test_where_the_sample_has_no_survivor_all_survivors_count():
    all_neurons = torch.ones(1000, dtype=torch.bool)
    sampled = templates(all_neurons)
    some = sampled & (torch.arange(1000) % 3 == 0)
    assert torch.equal(templates(some | ~sampled), some)
    assert torch.equal(templates(~sampled), ~sampled)
    assert torch.equal(templates(~all_neurons), all_neurons)


@pytest.mark.parametrize("n", [256, 264])
def test_only_the_models_are_read(n):
    """What is no model could hold anything."""
    sites = [random_site(chosen_mask(5, n=n), n=n) for _ in range(2)]
    others = ~(templates(sites[0].survivors) | sites[0].mask)
    assert others.any() == (n > 256)
    for tensor in (*sites[1].incoming[0], *(state.tensor.transpose(0, state.dim) for state in sites[1].state)):
        tensor[others] = float("nan")
    for site in sites:
        neuron_reinit([site], init="layer")
    for found, expected in zip(sites[1].state, sites[0].state, strict=True):
        assert torch.equal(found.tensor.select(found.dim, 5), expected.tensor.select(expected.dim, 5))
    for found, expected in zip(sites[1].incoming[0], sites[0].incoming[0], strict=True):
        assert torch.equal(found[5], expected[5])


def test_the_sample_of_a_layer_is_what_the_kernels_are_told():
    assert (sample_groups(0), sample_groups(1), sample_groups(256), sample_groups(257), sample_groups(3072)) == (
        (0, 0),
        (1, 1),
        (32, 32),
        (32, 16),
        (384, 16),
    )
