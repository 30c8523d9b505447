"""The reference of `plasticity_step` against its formulas written out in NumPy, and what the formulas promise."""

import numpy as np
import pytest
import torch
from steps import BASES, FORMS, Problem, assert_same_bits

from neuroplastic_kernels import plasticity_step, select
from neuroplastic_kernels.plasticity_step.reference import Hyperparameters, coefficient, homeostasis

LR, EPS, TINY = 0.03, 1e-8, np.finfo(np.float64).tiny
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def numpy_steps(p, gradients, *, base, exact=False, trace=False, b1=0.9, b2=0.97, rho=0.95, w=(0.4, 0.4, 0.2), lo=0.2,
                hi=2.0, scale=1.0, strength=1.0, warmup=0, max_norm=1.0, rms_target=0.02, rate=0.01, wd=0.0,
                decoupled=False):  # fmt: skip
    """The step as the formulas state it, one array at a time, in float64."""
    p = p.astype(np.float64)
    a, m, v, held = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), None
    for t, g in enumerate(gradients, 1):
        g = g.astype(np.float64)
        if wd and decoupled:
            p = p * (1 - LR * wd)
        elif wd and base != "gradient":
            g = g + wd * p
        a, m, v = rho * a + (1 - rho) * abs(g), b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        fix = (lambda rho: 1) if base == "gradient" else (lambda rho: 1 - rho**t)  # noqa: B023
        rms, r = np.sqrt(v / fix(b2)), (m / fix(b1)) / (np.sqrt(v / fix(b2)) + EPS)
        step = {"adamw": r, "momentum": m / (1 - b1), "gradient": g}[base]
        signals = [a / fix(rho) if trace else rms, abs(g), abs(r)]
        means = [x.mean() for x in signals]
        known = means if exact or base == "gradient" else held and held[0]
        if known is None:
            alpha = np.ones_like(p)
        else:
            floor = EPS if base == "gradient" else TINY
            x = [signal / (mean + floor) for signal, mean in zip(signals, known, strict=True)]
            full, plain = np.clip(sum(k * y for k, y in zip(w, x, strict=True)), lo, hi), np.clip(x[1], lo, hi)
            gate = min((t - 1) / warmup, 1) if warmup else 1
            alpha = 1 + strength * (plain + gate * scale * (full - plain) - 1)
        norm = lambda x: np.sqrt((x**2).sum())  # noqa: E731
        u = alpha * step
        if base == "gradient":
            u = u + (wd * p if wd and not decoupled else 0)
            u = u * min(1, max_norm / norm(u))
            u = u * np.clip(1 + rate * (rms_target - np.sqrt((u**2).mean() + EPS)), 0.5, 1.5)
        else:
            ratio = norm(step) / norm(u)
            u = u * (ratio if exact else held[1] if held else 1)
            held = means, ratio
        p = p - LR * u
    return {"p": p, "exp_avg": m, "exp_avg_sq": v} | ({"trace": a} if trace else {})


def stream(shape, steps=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(shape) + steps)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(steps + 1)]
    return drawn[0], drawn[1:]


def stepped(p, gradients, *, base, trace=False, **options):
    """The parameter and its state after these gradients."""
    problem = Problem(sizes=[p.shape], dtypes=[p.dtype], trace=trace)
    problem.params[0].copy_(p)
    for g in gradients:
        problem.step("reference", [g], base=base, **{"lr": LR, "betas": (0.9, 0.97), "eps": EPS, **options})
    return problem.states[0] | {"p": problem.params[0]}


CASES = {
    "default": ({}, {}),
    "warm-up": ({"warmup_steps": 5}, {"warmup": 5}),
    "scale 2 and warm-up": ({"plasticity_scale": 2.0, "warmup_steps": 4}, {"scale": 2.0, "warmup": 4}),
    "scale 0": ({"plasticity_scale": 0.0}, {"scale": 0.0}),
    "half strength": ({"strength": 0.5}, {"strength": 0.5}),
    "coupled decay": ({"weight_decay": 0.1}, {"wd": 0.1}),
    "decoupled decay": ({"weight_decay": 0.1, "decoupled_weight_decay": True}, {"wd": 0.1, "decoupled": True}),
    "other constants": (
        {"trace_decay": 0.8, "signal_weights": (0.1, 0.2, 0.7), "alpha_range": (0.5, 1.2), "max_update_norm": 3.0,
         "target_rms": 5.0, "homeostatic_rate": 0.05},
        {"rho": 0.8, "w": (0.1, 0.2, 0.7), "lo": 0.5, "hi": 1.2, "max_norm": 3.0, "rms_target": 5.0, "rate": 0.05},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trace", [False, True], ids=["rms", "trace"])
@pytest.mark.parametrize(
    ("base", "exact"),
    [("adamw", False), ("adamw", True), ("momentum", False), ("momentum", True), ("gradient", True)],
)
def test_the_step_is_the_formulas(base, exact, trace, case):
    options, numpy_options = CASES[case]
    p, gradients = stream((7, 13))
    want = numpy_steps(p.numpy(), [g.numpy() for g in gradients], base=base, exact=exact, trace=trace, **numpy_options)
    got = stepped(p, gradients, base=base, trace=trace, statistics="exact" if exact else "previous", **options)
    for name, value in want.items():
        torch.testing.assert_close(got[name], torch.from_numpy(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_every_dtype_follows_the_formulas(base, dtype):
    p, gradients = stream((31, 9), steps=4, dtype=dtype)
    want = numpy_steps(p.double().numpy(), [g.double().numpy() for g in gradients], base=base)
    got = stepped(p, gradients, base=base)
    assert got["p"].dtype == dtype
    for name, value in want.items():
        tolerance = TOLERANCE[got[name].dtype]
        torch.testing.assert_close(got[name].double(), torch.from_numpy(value), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("which", ["parameter", "gradient", "both"])
@pytest.mark.parametrize("base", BASES)
def test_layout_changes_nothing_but_the_order_of_sums(base, which):
    p, gradients = stream((4, 6, 5), steps=3)
    want = stepped(p, gradients, base=base)["p"]
    turned = lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # noqa: E731
    problem = Problem(sizes=[p.shape], dtypes=[p.dtype])
    problem.params[0] = p.clone() if which == "gradient" else turned(p)
    for g in gradients:
        each = g if which == "parameter" else turned(g)
        problem.step("reference", [each], base=base, lr=LR, betas=(0.9, 0.97))
    torch.testing.assert_close(problem.params[0], want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_the_exact_step_has_the_norm_of_the_base_s(base):
    p, gradients = stream((50,), steps=1)
    plain, plastic = (stepped(p, gradients, base=base, statistics="exact", strength=s)["p"] for s in (0.0, 1.0))
    assert not torch.allclose(plain, plastic)
    torch.testing.assert_close((plastic - p).norm(), (plain - p).norm(), rtol=1e-12, atol=0)


def torch_step(base, problem, gradients, state):
    """One step of torch's own optimizer from the problem's present parameters and state."""
    params = [p.clone().requires_grad_() for p in problem.params]
    adamw = base == "adamw"
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0) if adamw else torch.optim.SGD(params, LR, 0.9)
    for p, g, old in zip(params, gradients, state, strict=True):
        p.grad = g
        buffer = {"momentum_buffer": old["exp_avg"] / (1 - 0.9)}
        optimizer.state[p] = {k: old[k].clone() for k in ("step", "exp_avg", "exp_avg_sq")} if adamw else buffer
    optimizer.step()
    return params


@pytest.mark.parametrize("sums", [0.0, torch.nan, torch.inf], ids=["none", "nan", "inf"])
@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_without_history_is_adamw_s_own_bit_for_bit(dtype, statistics, sums):
    if statistics == "exact" and sums != 0:
        pytest.skip("exact sums do not come from the state")
    problem = Problem(sizes=[(64, 48), (7,), ()], dtypes=[dtype])
    problem.run("reference", 3, lr=LR)
    gradients = problem.gradients()
    if statistics == "exact":
        gradients = [torch.zeros_like(g) for g in gradients]
        for state in problem.states:
            state["exp_avg"].zero_(), state["exp_avg_sq"].zero_()
    for state in problem.states:
        state["sums"].fill_(sums)
    want = torch_step("adamw", problem, gradients, problem.states)
    problem.step("reference", gradients, lr=LR, statistics=statistics)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, want, strict=True))


@pytest.mark.parametrize("trace", [False, True], ids=["rms", "trace"])
@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_alpha_and_h_stay_within_their_bounds_whatever_the_gradients_do(base, trace):
    """So a step is never longer than hi/lo times the base's own, element by element, nor shorter than lo/hi."""
    p, jumps = stream((300,), steps=15)
    problem = Problem(sizes=[p.shape], dtypes=[p.dtype], trace=trace)
    for number, g in enumerate(jumps):
        g = g * (1e6, 1.0, 1e-6, 0.0, 1.0)[number % 5]
        g[7] *= 1e6 if number % 5 == 4 else 1  # a single huge element
        before = problem.params[0].clone()
        want = torch_step(base, problem, [g], problem.states)[0] - before
        problem.step("reference", [g], base=base, lr=LR)
        ratio = ((problem.params[0] - before) / want)[want.abs() > 1e-9]
        assert (ratio > 0.2 / 2 - 1e-5).all()
        assert (ratio < 2 / 0.2 + 1e-5).all()


def test_the_sums_are_those_of_the_step():
    p, gradients = stream((40,), steps=2)
    hyper = Hyperparameters(lr=LR, base="adamw", betas=(0.9, 0.97))
    first, second = stepped(p, gradients[:1], base="adamw"), stepped(p, gradients, base="adamw")
    m, v = second["exp_avg"] / (1 - 0.9**2), second["exp_avg_sq"] / (1 - 0.97**2)
    r = m / (v.sqrt() + EPS)
    alpha = coefficient((v.sqrt(), gradients[1].abs(), r.abs()), first["sums"], 40, 2.0, hyper)
    want = [v.sqrt().sum(), gradients[1].abs().sum(), r.abs().sum(), r.square().sum(), (alpha * r).square().sum()]
    torch.testing.assert_close(second["sums"], torch.stack(want), rtol=1e-12, atol=0)
    h = homeostasis(first["sums"], 40, hyper)
    torch.testing.assert_close(second["p"], first["p"] - LR * h * alpha * r, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("base", BASES)
def test_zero_gradients_leave_the_parameter_alone(base):
    p, gradients = stream((9,), steps=30)
    got = stepped(p, [torch.zeros_like(g) for g in gradients], base=base)
    assert torch.equal(got.pop("p"), p)
    assert got.pop("step") == 30
    assert not any(value.any() for value in got.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_a_bad_gradient_hits_its_element_alone_and_the_next_clean_steps_are_the_base_s(base, strength, bad):
    problem = Problem(sizes=[(9,), (4,)], dtypes=[torch.float64]).run("reference", 1, base=base, strength=strength)
    gradients = problem.gradients()
    gradients[0][3] = bad
    problem.step("reference", gradients, base=base, strength=strength)
    assert problem.params[0].isfinite().tolist() == [index != 3 for index in range(9)]
    assert problem.params[1].isfinite().all()
    gradients = problem.gradients()
    want = torch_step(base, problem, gradients, problem.states)[0]
    problem.step("reference", gradients, base=base, strength=strength, lr=LR, betas=(0.9, 0.999))
    clean = torch.arange(9) != 3
    torch.testing.assert_close(problem.params[0][clean], want.detach()[clean], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("statistics", ["previous", "exact"])
def test_a_skipped_step_leaves_no_trace_but_its_count(statistics, bad):
    clean, skipping = (Problem(sizes=[(9,), (4,)]).run("reference", 2, statistics=statistics) for _ in range(2))
    gradients = skipping.gradients()
    clean.gradients()
    gradients[0][3] = bad
    skipping.step("reference", [gradients[0], None], statistics=statistics, skip_nonfinite=True)
    assert skipping.states[0]["skipped"] == 1
    skipping.states[0]["skipped"].zero_()
    assert_same_bits(skipping, clean)
    assert_same_bits(skipping.run("reference", 2, skip_nonfinite=True), clean.run("reference", 2))


def test_no_bit_depends_on_neighbours_in_the_list():
    together, apart = (Problem(sizes=[(3, 5), (70,), (1,)]) for _ in range(2))
    together.run("reference", 2)
    for _ in range(2):
        for p, g, state in zip(apart.params, apart.gradients(), apart.states, strict=True):
            FORMS["reference"]([p], [g], [state], lr=0.01, base="adamw", betas=(0.9, 0.999))
    assert_same_bits(together, apart)


def test_backends():
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'reference', 'native', 'fused', got 'cuda'"):
        select("plasticity_step", "cuda")
    with pytest.raises(RuntimeError, match=r"backend=.fused. cannot run: .*float64; use backend=.auto."):
        select("plasticity_step", "fused", [torch.zeros(2, dtype=torch.float64)])


def test_an_unknown_keyword_and_unequal_lists_are_refused():
    p = [torch.zeros(2)]
    options = {"lr": 0.1, "base": "adamw", "betas": (0.9, 0.99), "backend": "reference"}
    with pytest.raises(TypeError, match="beta3"):
        plasticity_step(p, p, [{}], **options, beta3=1)
    with pytest.raises(ValueError, match="must be of one length, got 0, 1, 1"):
        plasticity_step([], p, [{}], **options)
