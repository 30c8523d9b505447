"""Every fused op against its reference on random shapes, dtypes and options: a few in the interpreter, 1000 on a device."""

import random

import pytest
import torch
from neuron_cases import copy_site, map_tensors, random_site

from neuroplastic_kernels import SUMS, ffn_activation, neuron_reinit, plasticity_step, synaptic_scale
from neuroplastic_kernels.ffn_activation.neuron_sums import ROWS
from neuroplastic_kernels.ffn_activation.reference import ACTIVATIONS

pytest.importorskip("triton")

CASES = {"cpu": 8, "cuda": 1000}
# Of the largest element: order of sums, and a rounding of a half type, which may fall on the other side.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def _assert_close(found, expected):
    for actual, wanted in zip(found, expected, strict=True):
        largest = wanted.float().abs().max().item() if wanted.numel() else 0.0
        tolerance = TOLERANCE.get(wanted.dtype, 0.0) * max(largest, 1e-3)
        torch.testing.assert_close(actual.cpu(), wanted, rtol=0, atol=tolerance, equal_nan=True)


def _size(draw, largest):
    """Small sizes as often as large ones, and those beside powers of two more often than others."""
    size = 2 ** draw.uniform(0, largest) + draw.choice((-1, 0, 0, 1))
    return max(1, int(size))


def _plasticity_step(draw, device):
    dtypes = [draw.choice(list(TOLERANCE)) for _ in range(draw.randint(1, 5))]
    shapes = [(_size(draw, 6), _size(draw, 7)) for _ in dtypes]
    options = {
        "lr": 0.01, "base": draw.choice(("gradient", "adamw", "momentum")), "betas": (0.9, 0.99),
        "weight_decay": draw.choice((0.0, 0.1)), "decoupled_weight_decay": draw.choice((False, True)),
        "statistics": draw.choice(("previous", "exact")), "skip_nonfinite": draw.choice((False, True)),
    }  # fmt: skip
    names = ["exp_avg", "exp_avg_sq", *draw.choice(([], ["trace"]))]
    params = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    gradients = [[torch.randn(p.shape).to(p.dtype) for p in params] for _ in range(2)]

    def run(backend, where):
        held, workspace = [p.to(where, copy=True) for p in params], {}
        states = [{name: torch.zeros_like(p, dtype=torch.float32) for name in names} for p in held]
        for state in states:
            state |= {"step": torch.zeros((), device=where), "skipped": torch.zeros((), device=where)}
            state["sums"] = torch.zeros(SUMS, device=where)
        for each in gradients:
            plasticity_step(held, [g.to(where) for g in each], states, backend=backend, workspace=workspace, **options)
        return [*held, *(tensor for state in states for tensor in state.values())]

    _assert_close(run("fused", device), run("reference", "cpu"))


def _ffn_activation(draw, device):
    shape = (*(_size(draw, 4) for _ in range(draw.randint(0, 2))), _size(draw, 8))
    dtype, masked = draw.choice(list(TOLERANCE)), draw.random() < 0.5
    options = {
        "activation": draw.choice(list(ACTIVATIONS)),
        "token_mask": torch.rand(shape[:-1]) > 0.3 if masked else None,
    }
    given = [torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype), torch.randn(shape).to(dtype)]

    def run(backend, where, kind):
        h, bias, upstream = (t.to(where, kind) for t in given)
        inputs, moments = [h.requires_grad_(), bias.requires_grad_()], torch.zeros(ROWS, shape[-1], device=where)
        mask = None if options["token_mask"] is None else options["token_mask"].to(where)
        z = ffn_activation(*inputs, moments, backend=backend, **{**options, "token_mask": mask})
        return [*(t.to(dtype) for t in (z.detach(), *torch.autograd.grad(z, inputs, upstream))), moments]

    _assert_close(run("fused", device, dtype), run("reference", "cpu", torch.float32))


def _neuron_reinit(draw, device):
    dtype, n = draw.choice(list(TOLERANCE)), _size(draw, 9)
    share = draw.choice((0.0, 0.01, 0.3, 0.5))
    sites = [
        random_site(torch.rand(n) < share, n=n, d=_size(draw, 6), m=_size(draw, 6), dtype=dtype, site=index)
        for index in range(draw.randint(1, 3))
    ]
    possible = all(int(site.mask.sum()) <= int(site.survivors.sum()) for site in sites)
    options = {"init": draw.choice(("normal", "fan_in", "layer", "zero", *(["split"] if possible else []))), "event": 3}
    twins = [map_tensors(site, lambda tensor: tensor.to(device, copy=True)) for site in sites]
    wholes = [copy_site(site) for site in sites]
    neuron_reinit(twins, backend="fused", **options)
    neuron_reinit(wholes, backend="reference", **options)
    for twin, whole in zip(twins, wholes, strict=True):
        _assert_close(twin.written(), list(whole.written()))


def _synaptic_scale(draw, device):
    shapes = [(_size(draw, 8), _size(draw, 6)) for _ in range(draw.randint(1, 4))]
    firsts, total = [sum(n for n, _ in shapes[:index]) for index in range(len(shapes))], sum(n for n, _ in shapes)
    weights = [torch.randn(shape) for shape in shapes]
    flat = [torch.empty(total).uniform_(0.5, 1.5), torch.rand(total), torch.rand(total), torch.rand(total) > 0.2]
    options = {"rate": 0.05, "target": draw.choice(("layer", 0.5)), "scale_range": (0.1, 2.0)}

    def run(backend, where):
        held, copies = ([t.to(where, copy=True) for t in tensors] for tensors in (weights, flat))
        synaptic_scale(held, firsts, *copies, backend=backend, **options)
        return [*held, copies[0]]

    _assert_close(run("fused", device), run("reference", "cpu"))


@pytest.mark.parametrize("check", [_plasticity_step, _ffn_activation, _neuron_reinit, _synaptic_scale])
def test_random_shapes(check, device):
    draw = random.Random(0)
    for case in range(CASES[device]):
        torch.manual_seed(case)
        try:
            check(draw, device)
        except Exception as error:
            raise AssertionError(f"random case {case} of {check.__name__}") from error
