"""Diagnostics report what the step did, and change nothing."""

import pytest
import torch

from hf_neuroplastic import NeuroPlastic


def stepped(base, **options):
    p = torch.nn.Parameter(torch.randn(40, dtype=torch.float64))
    before = p.detach().clone()
    p.grad = torch.randn_like(p)
    optimizer = NeuroPlastic([p], lr=0.1, base=base, **options)
    optimizer.step()
    return optimizer, p, before


@pytest.mark.parametrize("base", ["gradient", "adamw", "momentum"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_update_is_the_one_that_was_applied(base, strength):
    optimizer, p, before = stepped(base, strength=strength)
    ratio = ((p.detach() - before) / 0.1).norm() / p.grad.norm()
    torch.testing.assert_close(optimizer.diagnostics()["update_gradient_ratio"], ratio.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_coefficient_is_the_formulas(strength):
    optimizer, p, _ = stepped("gradient", signals="gradient", strength=strength)
    x = p.grad.abs() / p.grad.abs().mean()
    alpha = 1 + strength * (x.clamp(0.2, 2.0) - 1)
    report = optimizer.diagnostics()
    torch.testing.assert_close(report["alpha_mean"], alpha.mean().float())
    assert report["share_at_lower"] == (x <= 0.2).double().mean().float()
    assert report["share_at_upper"] == (x >= 2.0).double().mean().float()
    assert report["share_at_lower"] > 0
    assert report["share_at_upper"] > 0


def test_they_change_nothing():
    optimizer, p, _ = stepped("adamw")
    before = [p.detach().clone(), p.grad.clone(), *(v.clone() for v in optimizer.state[p].values())]
    assert all(isinstance(value, torch.Tensor) for value in optimizer.diagnostics().values())
    for got, want in zip([p.detach(), p.grad, *optimizer.state[p].values()], before, strict=True):
        assert torch.equal(got, want)


def test_they_need_gradients():
    optimizer, _, _ = stepped("adamw")
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="after step\\(\\) and before zero_grad\\(\\)"):
        optimizer.diagnostics()
