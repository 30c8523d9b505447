"""Diagnostics report what the step did, from the sums it left."""

import pytest
import torch

from hf_neuroplastic import NeuroPlastic


def stepped(base="adamw", steps=2, **options):
    params = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in (40, 7)]
    optimizer = NeuroPlastic(params, lr=0.1, base=base, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("base", ["gradient", "adamw", "momentum"])
def test_the_means_are_those_of_all_parameters(base):
    optimizer, params = stepped(base)
    report = optimizer.diagnostics()
    grads = torch.cat([p.grad for p in params])
    torch.testing.assert_close(report["gradient_mean"], grads.abs().mean())
    if base == "gradient":
        torch.testing.assert_close(report["base_norm"], grads.norm())
    assert 0.2 <= report["alpha_rms"] <= 2


def test_the_norm_is_that_of_adamw_s_step():
    optimizer, _ = stepped(steps=1)
    torch.testing.assert_close(
        optimizer.diagnostics()["base_norm"], torch.tensor(47.0).double().sqrt()
    )  # each moves by 1
    assert optimizer.diagnostics()["alpha_rms"] == 1


def test_without_plasticity_there_is_nothing_to_tell():
    report = stepped(strength=0.0)[0].diagnostics()
    assert report["alpha_rms"].isnan()
    assert report["gradient_mean"] == 0


def test_they_change_nothing_and_outlive_the_gradients():
    optimizer, params = stepped()
    before = [value.clone() for p in params for value in (p.detach(), *optimizer.state[p].values())]
    first = optimizer.diagnostics()
    optimizer.zero_grad()
    assert first == optimizer.diagnostics()
    after = [value for p in params for value in (p.detach(), *optimizer.state[p].values())]
    assert all(torch.equal(got, want) for got, want in zip(after, before, strict=True))


def test_they_need_a_step():
    with pytest.raises(RuntimeError, match=r"call it after step\(\)"):
        stepped(steps=0)[0].diagnostics()
