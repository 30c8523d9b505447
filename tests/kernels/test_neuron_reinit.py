"""Rebirth touches exactly the chosen slices, with numbers that depend on nothing but their logical place."""

import math

import pytest
import torch
from neuron_cases import INITS, D, N, chosen_mask, copy_site, random_site

from neuroplastic_kernels import neuron_reinit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("init", INITS)
def test_nothing_outside_the_chosen_slices_changes(init, bias, dtype):
    tensors = random_site(chosen_mask(2, 5, 11), bias=bias, dtype=dtype)
    before = copy_site(tensors)
    neuron_reinit([tensors], init=init, seed=3, event=9)
    kept = tensors.survivors.clone()
    assert torch.equal(tensors.up_weight[kept], before.up_weight[kept])
    if bias:
        assert torch.equal(tensors.up_bias[kept], before.up_bias[kept])
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
    assert not torch.equal(tensors.up_weight, before.up_weight)


@pytest.mark.parametrize(
    ("init", "mean", "std"), [("normal", 0.0, 0.02), ("fan_in", 0.0, 1 / math.sqrt(3 * 64)), ("layer", 2.0, 0.5)]
)
def test_fresh_rows_have_the_promised_distribution(init, mean, std):
    n, d = 600, 64
    tensors = random_site(torch.arange(n) < 300, n=n, d=d)
    tensors.up_weight[300:].mul_(0.5).add_(2.0)
    tensors.up_weight[300:] += 2.0 - tensors.up_weight[300:].mean()
    tensors.up_weight[300:] = (tensors.up_weight[300:] - 2.0) * (0.5 / tensors.up_weight[300:].std()) + 2.0
    expected_bias = tensors.up_bias[300:].mean().item() if init == "layer" else 0.0
    neuron_reinit([tensors], init=init, std=0.02, seed=5)
    fresh = tensors.up_weight[:300]
    assert abs(fresh.mean().item() - mean) < 4 * std / math.sqrt(fresh.numel())
    assert abs(fresh.std().item() / std - 1) < 4 / math.sqrt(2 * fresh.numel())
    torch.testing.assert_close(tensors.up_bias[:300], torch.full((300,), expected_bias), rtol=1e-4, atol=1e-6)


def test_split_preserves_the_function_and_its_twins_differ_in_gradient():
    tensors = random_site(chosen_mask(3, 8))
    tensors = tensors._replace(mean_output=torch.zeros(N))
    donors = tensors.donors[tensors.mask]
    x = torch.randn(20, D, dtype=torch.float64)

    def output(t, silenced=()):
        z = torch.relu(x @ t.up_weight.double().T + t.up_bias.double())
        z[:, list(silenced)] = 0.0
        return z @ t.down_weight.double().T + t.down_bias.double()

    expected = output(tensors, silenced=(3, 8))
    neuron_reinit([tensors], init="split")
    torch.testing.assert_close(output(tensors), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(tensors.up_weight[tensors.mask], tensors.up_weight[donors])
    assert not torch.equal(tensors.down_weight[:, tensors.mask], tensors.down_weight[:, donors])


def test_split_without_donors_is_refused():
    with pytest.raises(ValueError, match=r"split.*donors"):
        neuron_reinit([random_site(chosen_mask(1))._replace(donors=None)], init="split")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_belong_to_places_not_to_the_order_of_work(dtype):
    """A neuron gets the same weights whether reborn alone or in company, in any list of sites; others for another event."""

    def row(mask, sites_before=0, **keys):
        tensors = random_site(mask, dtype=dtype, site=keys.pop("site", 4))
        neuron_reinit([random_site(chosen_mask(1)) for _ in range(sites_before)] + [tensors], init="fan_in", **keys)
        return tensors.up_weight[5]

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
    for found in (tensors.up_weight, *(state.tensor for state in tensors.state)):
        assert torch.isfinite(found).all()
