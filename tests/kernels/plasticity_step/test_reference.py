"""`plasticity_step` against the formulas written out in NumPy, and against itself in other layouts and pieces."""

import importlib

import numpy as np
import pytest
import torch

from neuroplastic_kernels import plasticity_step, select

reference_module = importlib.import_module("neuroplastic_kernels.plasticity_step.reference")

BASES = ("gradient", "adamw", "momentum")
LR, EPS = 0.03, 1e-8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def numpy_steps(p, gradients, *, base, b1, b2, rho=0.95, w=(0.4, 0.4, 0.2), lo=0.2, hi=2.0, scale=1.0, strength=1.0,
                warmup=0, signals="all", max_norm=1.0, rms_target=0.02, rate=0.01, wd=0.0, decoupled=False):  # fmt: skip
    """The step as the formulas state it, one array at a time, in float64."""
    p = p.astype(np.float64)
    a, m, v = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(gradients):
        g = g.astype(np.float64)
        if wd and decoupled:
            p = p * (1 - LR * wd)
        elif wd and base != "gradient":
            g = g + wd * p
        a, m, v = rho * a + (1 - rho) * abs(g), b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        r = abs(m) / (np.sqrt(v) + EPS)
        a_hat, g_hat, r_hat = (x / (x.mean() + EPS) for x in (a, abs(g), r))
        full = np.clip(w[0] * a_hat + w[1] * g_hat + w[2] * r_hat, lo, hi)
        of_gradient = np.clip(g_hat, lo, hi)
        gate = min(max(k / warmup, 0), 1) if warmup else 1
        alpha = of_gradient + gate * scale * (full - of_gradient) if signals == "all" else of_gradient
        alpha = 1 + strength * (alpha - 1)
        if base == "gradient":
            u = alpha * g + (wd * p if wd and not decoupled else 0)
            norm = np.sqrt((u**2).sum())
            if norm > max_norm:
                u = u * max_norm / norm
            rms = np.sqrt((u**2).mean() + EPS)
            u = u * np.clip(1 + rate * (rms_target - rms), 0.5, 1.5)
        else:
            step = m / (1 - b1)
            if base == "adamw":
                step = (m / (1 - b1 ** (k + 1))) / (np.sqrt(v / (1 - b2 ** (k + 1))) + EPS)
            u = alpha * step
            u = u * np.sqrt((step**2).sum()) / np.sqrt((u**2).sum())
        p = p - LR * u
    return p, a, m, v


def torch_steps(p, gradients, *, base, betas, **options):
    dtype = torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype
    p = p.clone(memory_format=torch.preserve_format)
    state = [torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format) for _ in range(3)]
    step = torch.zeros(())
    for g in gradients:
        lists = [[x] for x in (p, g, *state, step)]
        plasticity_step(*lists, lr=LR, base=base, betas=betas, eps=EPS, **options)
    return p, *state


def stream(shape, steps=12, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(len(shape) + steps)
    draw = lambda: torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)  # noqa: E731
    return draw(), [draw() for _ in range(steps)]


CASES = {
    "default": ({}, {}),
    "warm-up": ({"warmup_steps": 5}, {"warmup": 5}),
    "scale 2 and warm-up": ({"plasticity_scale": 2.0, "warmup_steps": 4}, {"scale": 2.0, "warmup": 4}),
    "scale 0.5": ({"plasticity_scale": 0.5}, {"scale": 0.5}),
    "gradient signal": ({"signals": "gradient"}, {"signals": "gradient"}),
    "half strength": ({"strength": 0.5}, {"strength": 0.5}),
    "coupled decay": ({"weight_decay": 0.1}, {"wd": 0.1}),
    "decoupled decay": (
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"wd": 0.1, "decoupled": True},
    ),
    "other constants": (
        {"trace_decay": 0.8, "signal_weights": (0.1, 0.2, 0.7), "alpha_range": (0.5, 1.2), "max_update_norm": 3.0,
         "target_rms": 5.0, "homeostatic_rate": 0.05},
        {"rho": 0.8, "w": (0.1, 0.2, 0.7), "lo": 0.5, "hi": 1.2, "max_norm": 3.0, "rms_target": 5.0, "rate": 0.05},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", BASES)
def test_the_step_is_the_formulas(base, case):
    options, numpy_options = CASES[case]
    p, gradients = stream((7, 13))
    b1, b2 = (0.9, 0.97)
    expected = numpy_steps(p.numpy(), [g.numpy() for g in gradients], base=base, b1=b1, b2=b2, **numpy_options)
    actual = torch_steps(p, gradients, base=base, betas=(b1, b2), **options)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_every_dtype_follows_the_formulas(base, dtype):
    p, gradients = stream((31, 9), steps=4, dtype=dtype)
    expected = numpy_steps(p.double().numpy(), [g.double().numpy() for g in gradients], base=base, b1=0.9, b2=0.99)
    actual = torch_steps(p, gradients, base=base, betas=(0.9, 0.99))
    assert actual[0].dtype == dtype
    tolerances = [TOLERANCE[dtype]] + [TOLERANCE.get(state.dtype) for state in actual[1:]]
    for got, want, tolerance in zip(actual, expected, tolerances, strict=True):
        torch.testing.assert_close(got.double(), torch.from_numpy(want), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (64,), (65,), (3, 129)], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_pieces_change_nothing_but_the_order_of_sums(base, shape, monkeypatch):
    p, gradients = stream(shape, steps=3)
    whole = torch_steps(p, gradients, base=base, betas=(0.9, 0.99))
    monkeypatch.setattr(reference_module, "CHUNK", 64)
    for got, want in zip(torch_steps(p, gradients, base=base, betas=(0.9, 0.99)), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("which", ["parameter", "gradient", "both"])
@pytest.mark.parametrize("base", BASES)
def test_layout_changes_nothing_but_the_order_of_sums(base, which):
    p, gradients = stream((4, 6, 5), steps=3)
    expected = torch_steps(p, gradients, base=base, betas=(0.9, 0.99))
    turned = lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # noqa: E731
    if which != "gradient":
        p = turned(p)
    if which != "parameter":
        gradients = [turned(g) for g in gradients]
    for got, want in zip(torch_steps(p, gradients, base=base, betas=(0.9, 0.99)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_plasticity_conserves_the_norm_of_the_step(base):
    p, gradients = stream((50,), steps=1)
    plain, plastic = (torch_steps(p, gradients, base=base, betas=(0.9, 0.99), strength=s)[0] for s in (0.0, 1.0))
    assert not torch.allclose(plain, plastic)
    torch.testing.assert_close((plastic - p).norm(), (plain - p).norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_zero_gradients_leave_the_parameter_alone(base):
    p, gradients = stream((9,), steps=2)
    got = torch_steps(p, [torch.zeros_like(g) for g in gradients], base=base, betas=(0.9, 0.99))
    assert torch.equal(got[0], p)
    assert all(torch.equal(state, torch.zeros_like(p)) for state in got[1:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("base", BASES)
def test_a_bad_gradient_shows_and_does_not_raise(base, strength, bad):
    p, gradients = stream((9,), steps=2)
    gradients[1][3] = bad
    options = {"max_update_norm": None, "homeostatic_rate": 0.0, "strength": strength}
    got = torch_steps(p, gradients, base=base, betas=(0.9, 0.99), **options)[0]
    assert not got[3].isfinite()
    if strength == 0:  # as in the plain optimizer, only the element itself
        assert got.isfinite().sum() >= 8


def test_no_bit_depends_on_neighbours_in_the_list():
    streams = [stream(shape, steps=1, dtype=torch.float32) for shape in ((3, 5), (70,), (1,))]
    alone = [torch_steps(p, g, base="adamw", betas=(0.9, 0.999)) for p, g in streams]
    together = [[p.clone() for p, _ in streams], [g[0] for _, g in streams]]
    together += [[torch.zeros_like(p) for p, _ in streams] for _ in range(3)] + [[torch.zeros(()) for _ in streams]]
    plasticity_step(*together, lr=LR, base="adamw", betas=(0.9, 0.999), eps=EPS)
    for index, want in enumerate(alone):
        assert all(torch.equal(together[k][index], x) for k, x in zip((0, 2, 3, 4), want, strict=True))


def test_backends():
    on_cpu = [torch.zeros(2)]
    assert select("plasticity_step", "auto", on_cpu) is select("plasticity_step", "reference", on_cpu)
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'reference', 'fused', got 'cuda'"):
        select("plasticity_step", "cuda")
    with pytest.raises(RuntimeError, match=r"backend=.fused. cannot run: .*float64; use backend=.auto."):
        select("plasticity_step", "fused", [torch.zeros(2, dtype=torch.float64)])


def test_an_unknown_keyword_and_unequal_lists_are_refused():
    p = [torch.zeros(2)]
    state = [p, p, p, p, p, [torch.zeros(())]]
    with pytest.raises(TypeError, match="beta3"):
        plasticity_step(*state, lr=0.1, base="adamw", betas=(0.9, 0.99), beta3=1)
    with pytest.raises(ValueError, match="must be of one length, got 0, 1, 1, 1, 1, 1"):
        plasticity_step([], *state[1:], lr=0.1, base="adamw", betas=(0.9, 0.99))
