"""With plasticity switched off, NeuroPlastic is torch's SGD, SGD with momentum, AdamW and Adam."""

import shutil

import pytest
import torch

from hf_neuroplastic import NeuroPlastic

UNBOUNDED = {"max_update_norm": None, "homeostatic_rate": 0.0}
PAIRS = {
    "sgd": ({"base": "gradient", **UNBOUNDED}, lambda p, **k: torch.optim.SGD(p, **k)),
    "sgd, decay": (
        {"base": "gradient", "weight_decay": 0.1, **UNBOUNDED},
        lambda p, **k: torch.optim.SGD(p, weight_decay=0.1, **k),
    ),
    "momentum": ({"base": "momentum"}, lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k)),
    "momentum, decay": (
        {"base": "momentum", "weight_decay": 0.1},
        lambda p, **k: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1, **k),
    ),
    "adamw": ({"weight_decay": 0.1}, lambda p, **k: torch.optim.AdamW(p, weight_decay=0.1, **k)),
    "adam": (
        {"weight_decay": 0.1, "decoupled_weight_decay": False},
        lambda p, **k: torch.optim.Adam(p, weight_decay=0.1, **k),
    ),
    "adam, other betas": (
        {"betas": (0.8, 0.9), "eps": 1e-3},
        lambda p, **k: torch.optim.Adam(p, betas=(0.8, 0.9), eps=1e-3, **k),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_without_plasticity_it_is_the_plain_optimizer(pair, maximize, dtype):
    options, build = PAIRS[pair]
    ours = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((7, 5), (3,), ())]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (
        NeuroPlastic(ours, lr=0.01, strength=0.0, maximize=maximize, **options),
        build(theirs, lr=0.01, maximize=maximize),
    )
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("foreach_or_fused", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_without_plasticity_it_is_adamw_bit_for_bit(foreach_or_fused, backend):
    """In each form with torch's form of the same arithmetic: a root is rounded in two ways in torch's AdamW."""
    if (backend == "native") != ("fused" in foreach_or_fused):
        pytest.skip("another arithmetic")
    if backend == "native" and not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((48, 64), (32,), (16, 3, 4))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (
        NeuroPlastic(ours, lr=0.01, strength=0.0, weight_decay=0.1, backend=backend),
        torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, **foreach_or_fused),
    )
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_plasticity_is_on_by_default_from_the_second_step_on():
    ours, theirs = (torch.nn.Parameter(torch.ones(6)) for _ in range(2))
    optimizers = NeuroPlastic([ours]), torch.optim.AdamW([theirs], weight_decay=0.0)
    for number in range(2):
        ours.grad = theirs.grad = torch.arange(6.0) + number
        for optimizer in optimizers:
            optimizer.step()
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5) == (number == 0)
