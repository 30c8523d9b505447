"""The sum of squares of all gradients, fused; and clipping by the norm that the groups of an optimizer have together."""

import importlib
import math

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import gradient_squares

pytest.importorskip("triton")
squares_module = importlib.import_module("neuroplastic_kernels.plasticity_step.fused_gradient_squares")
Geometry = importlib.import_module("neuroplastic_kernels.plasticity_step.geometry").Geometry


def draw(device, *sizes, dtypes=(torch.float32,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    kinds = [dtypes[index % len(dtypes)] for index in range(len(sizes))]
    return [torch.randn(s, generator=generator).to(device, kind) for s, kind in zip(sizes, kinds, strict=True)]


def squares(grads, **options):
    return gradient_squares(grads, backend="fused", **options)


def assert_sum(got, grads):
    assert got.item() == pytest.approx(sum(g.double().square().sum().item() for g in grads if g is not None), rel=2e-6)


@pytest.mark.parametrize("shape", [(256, 1024), (16384, 16384)], ids=str)
def test_gradients_of_every_dtype_size_and_layout(shape, device, monkeypatch):
    monkeypatch.setattr(squares_module, "geometry", lambda: Geometry(*shape, warps=4))
    grads = draw(device, (17,), (3, 0), (), (5, 900), (2049,), dtypes=(torch.float32, torch.bfloat16, torch.float16))
    grads += [draw(device, (30, 7))[0].t(), draw(device, (50,))[0].double(), draw(device, (51,))[0][1:], None]
    assert_sum(squares(grads), grads)
    assert_sum(squares(grads), grads)
    assert_sum(gradient_squares(grads, backend="reference"), grads)


def test_only_others_and_nothing_at_all(device):
    others = [draw(device, (30, 7))[0].t(), torch.ones(3, device=device).double()]
    assert_sum(squares(others), others)
    assert squares([]) == squares([None]) == 0


def test_the_first_gradient_may_be_of_another_form(device):
    grads = [torch.ones(3, device=device).double(), *draw(device, (30, 7))]
    assert_sum(squares(grads), grads)


def test_one_table_serves_gradients_that_move(device):
    workspace = {}
    first, second = draw(device, (40,), (9,)), draw(device, (40,), (9,), seed=1)
    assert_sum(squares(first, workspace=workspace), first)
    held = workspace["squares"]
    assert_sum(squares(second, workspace=workspace), second)
    assert_sum(squares([first[0], second[1]], workspace=workspace), [first[0], second[1]])
    assert workspace["squares"] is held
    for other in (draw(device, (39,), (9,)), draw(device, (39,), (9,), dtypes=(torch.bfloat16,))):
        assert_sum(squares(other, workspace=workspace), other)
        assert workspace["squares"] is not held
        held = workspace["squares"]


def test_memory_taken_for_another_dtype_or_device_is_seen(device):
    workspace, whole = {}, draw(device, (64,))[0]
    assert_sum(squares([whole], workspace=workspace), [whole])
    half = whole.view(torch.bfloat16)[:64]
    half.copy_(torch.arange(64))
    assert_sum(squares([half], workspace=workspace), [half])
    held = squares_module.refreshed(workspace, [half.to("meta")])
    assert all(table.fields.device.type == "meta" for table in held.tables)


def test_the_same_gradients_give_the_same_bits(device):
    grads = draw(device, (5000,), (70000,))
    assert torch.equal(squares(grads), squares([g.clone() for g in grads]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(bad, device):
    grads = draw(device, (5,), (6,))
    grads[1][2] = bad
    assert not squares(grads).isfinite()


def parameters(device, *dtypes):
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in ((5, 6), (7,), (300,))]
    params = [
        torch.nn.Parameter(p.detach().to(kind)) for p, kind in zip(params, dtypes or (torch.float32,) * 3, strict=True)
    ]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def optimizer_of(params, backend, limits=(None, None), **options):
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:]}]
    return NeuroPlastic(
        [{**group, "max_grad_norm": limit} for group, limit in zip(groups, limits, strict=True)],
        backend=backend,
        **options,
    )


def assert_same_steps(inside, before):
    for got, want in zip(inside, before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", ["gradient", "adamw", "momentum"])
def test_groups_are_clipped_by_the_norm_they_have_together(base, where):
    device, backend = where
    inside, before = parameters(device), parameters(device)
    clipping, plain = optimizer_of(inside, backend, (0.5, 0.5), base=base), optimizer_of(before, backend, base=base)
    for _ in range(2):
        clipping.step()
        torch.nn.utils.clip_grad_norm_(before, 0.5)
        plain.step()
    assert_same_steps(inside, before)


def test_groups_with_different_limits_are_clipped_apart(where):
    device, backend = where
    inside, before = parameters(device), parameters(device)
    optimizer_of(inside, backend, (0.5, 2.0), base="gradient").step()
    torch.nn.utils.clip_grad_norm_(before[:1], 0.5)
    torch.nn.utils.clip_grad_norm_(before[1:], 2.0)
    optimizer_of(before, backend, base="gradient").step()
    assert_same_steps(inside, before)


def test_a_group_without_a_limit_neither_counts_nor_is_clipped(where):
    device, backend = where
    inside, before = parameters(device), parameters(device)
    optimizer_of(inside, backend, (0.5, None), base="gradient").step()
    torch.nn.utils.clip_grad_norm_(before[:1], 0.5)
    optimizer_of(before, backend, base="gradient").step()
    assert_same_steps(inside, before)


KINDS = [(torch.float32, torch.float32, torch.float64), (torch.bfloat16, torch.float32, torch.float16)]


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_tensors_of_every_form_share_one_norm(kinds, where):
    """float64 goes to the reference, whichever form the others take."""
    device, backend = where
    inside, before = parameters(device, *kinds), parameters(device, *kinds)
    optimizer_of(inside, backend, (0.5, 0.5), lr=0.5, base="gradient").step()
    norm = torch.stack([p.grad.double().norm() for p in before]).norm()
    for p in before:
        p.grad = (p.grad.double() * 0.5 / norm).to(p.dtype)
    optimizer_of(before, backend, lr=0.5, base="gradient").step()
    for got, want in zip(inside, before, strict=True):
        half = got.dtype.itemsize == 2  # then the gradient was rounded before
        torch.testing.assert_close(got, want, rtol=2**-6 if half else 1e-5, atol=1e-4 if half else 1e-5)


def test_the_norm_is_that_of_unscaled_gradients(where):
    device, backend = where
    scaled, plain = parameters(device), parameters(device)
    clipping, expected = optimizer_of(scaled, backend, (0.5, 0.5)), optimizer_of(plain, backend, (0.5, 0.5))
    for p in scaled:
        p.grad = p.grad * 2.0**20
    clipping.grad_scale, clipping.found_inf = torch.full((), 2.0**20, device=device), torch.zeros((), device=device)
    clipping.step()
    expected.step()
    assert_same_steps(scaled, plain)


def test_gradients_that_come_and_go_count_when_they_are_there(where):
    device, backend = where
    inside, before = parameters(device), parameters(device)
    clipping, plain = optimizer_of(inside, backend, (0.5, 0.5)), optimizer_of(before, backend)
    for absent in ((), (0,), (1, 2), ()):
        for params in (inside, before):
            for index, p in enumerate(params):
                p.grad = None if index in absent else torch.full_like(p, index + 1.0)
        clipping.step()
        torch.nn.utils.clip_grad_norm_(before, 0.5)
        plain.step()
    assert_same_steps(inside, before)
