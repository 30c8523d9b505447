"""8-bit state in the fused step, against the reference."""

from itertools import chain

import pytest
import torch
from fused_step import BASES, Problem, cut_into

from neuroplastic_kernels.plasticity_step.eight_bit import dequantise


@pytest.mark.parametrize("shape", [None, (256, 1024), (1024, 4096)])
@pytest.mark.parametrize("base", BASES)
def test_eight_bit_state(base, shape, device, monkeypatch):
    """Codes differ from the reference's where the last digit of float32 decides, and then by one."""
    if shape:
        cut_into(monkeypatch, *shape)
    sizes, options = [(5, 7), (5100,)], {"base": base, "max_grad_norm": 1.0, "weight_decay": 0.01}
    fused, reference = (Problem(device, sizes, eight_bit=True) for _ in range(2))
    for problem, backend in ((fused, "fused"), (reference, "reference")):
        problem.run(backend, steps=1, **options)
        gradients = problem.gradients()
        gradients[1][300] = 1e9  # beside it the other v of its block are next to nothing
        problem.step(backend, gradients, **{**options, "max_grad_norm": None})
    for got, want in zip(fused.params, reference.params, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    for got, want in zip(chain(*fused.state), chain(*reference.state), strict=True):
        if not want.is_floating_point():
            difference = (got.int() - want.int()).abs()
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 2e-3
    torch.testing.assert_close(fused.scales[1], reference.scales[1], rtol=1e-2, atol=0)
    assert dequantise([moment[1] for moment in fused.state], fused.scales[1])[2].min() > 0


@pytest.mark.parametrize("base", BASES)
def test_the_mean_of_an_eight_bit_trace(base, device):
    """Steps that follow the trace alone: a code that differs by one moves an element by a hundredth of its step."""
    options = {"base": base, "signal_weights": (1.0, 0.0, 0.0), "alpha_range": (0.0, 3.0), "steps": 4}
    options["lr"] = 10.0 if base == "gradient" else 0.01  # far above float32's last digit
    fused, reference = (Problem(device, [(9000,)], eight_bit=True).run(b, **options) for b in ("fused", "reference"))
    start = Problem(device, [(9000,)]).params[0]
    difference, moved = fused.params[0] - reference.params[0], reference.params[0] - start
    assert difference.abs().max() < 0.02 * moved.abs().max()
    assert difference.abs().mean() < 3e-5 * moved.abs().mean()
