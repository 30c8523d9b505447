"""Loss scaling, clipping, stochastic rounding and 8-bit state in NeuroPlastic."""

import copy

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from hf_neuroplastic.optimizer.clipping import gradient_factor

BASES = ("gradient", "adamw", "momentum")


def parameters(*shapes, dtype=torch.float32, gradient_scale=1.0):
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param) * gradient_scale
    return params


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("limit", [0.5, 1e6, float("inf")])
def test_clipping_inside_the_step_is_clipping_before_it(base, limit):
    inside, before = (parameters((5, 6), (7,)) for _ in range(2))
    for _ in range(2):
        NeuroPlastic(inside, base=base, max_grad_norm=limit).step()
        torch.nn.utils.clip_grad_norm_(before, limit)
        NeuroPlastic(before, base=base).step()
    for got, want in zip(inside, before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_grad_scaler_changes_no_step(unscale_first):
    scaled, plain = parameters((5, 6), (7,)), parameters((5, 6), (7,))
    optimizer, expected = NeuroPlastic(scaled), NeuroPlastic(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        scaler.scale(sum((p * g.grad).sum() for p, g in zip(scaled, plain, strict=True)))
        for param, other in zip(scaled, plain, strict=True):
            param.grad = other.grad * 1024
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        expected.step()
    assert all(torch.equal(got, want) for got, want in zip(scaled, plain, strict=True))


@pytest.mark.parametrize("state_bits", [8, 32])
def test_a_grad_scaler_leaves_out_an_overflowed_step(state_bits):
    params = parameters((80, 64), (7,))
    optimizer = NeuroPlastic(params, state_bits=state_bits)
    optimizer.step()
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    params[1].grad[3] = torch.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(1))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    assert all(torch.equal(got, want) for got, want in zip(params, before[0], strict=True))
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][index][name]) for name, value in state.items())


def test_stochastic_rounding_keeps_what_nearest_rounding_loses():
    """A step of a hundredth of the last digit: rounded to the nearest it never happens, at random it does on average."""
    moved = {}
    for stochastic in (False, True):
        param = torch.nn.Parameter(torch.ones(20000, dtype=torch.bfloat16))
        optimizer = NeuroPlastic([param], lr=2.0**-8 / 100, strength=0.0, stochastic_rounding=stochastic)
        for _ in range(20):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved[stochastic] = (1 - param.double().mean()).item()
    assert moved[False] == 0
    assert moved[True] == pytest.approx(20 * 2.0**-8 / 100, rel=0.05)


def test_stochastic_rounding_follows_its_seed_and_leaves_float32_alone():
    def stepped(dtype, **options):
        param = parameters((3000,), dtype=dtype)[0]
        NeuroPlastic([param], stochastic_rounding=True, **options).step()
        return param

    assert torch.equal(stepped(torch.bfloat16), stepped(torch.bfloat16))
    assert not torch.equal(stepped(torch.bfloat16), stepped(torch.bfloat16, seed=1))
    assert torch.equal(stepped(torch.float32), stepped(torch.float32, seed=1))


def test_eight_bit_state_takes_the_large_tensors():
    params = parameters((64, 64), (8192,), (128, 65), (64, 128))
    params[3] = torch.nn.Parameter(params[3].detach().t())
    params[3].grad = torch.randn_like(params[3])
    optimizer = NeuroPlastic(params, state_bits=8)
    optimizer.step()
    assert ["scales" in optimizer.state[p] for p in params] == [True, False, False, False]
    state = optimizer.state[params[0]]
    assert [state[name].dtype for name in ("exp_avg", "exp_avg_sq")] == [torch.int8, torch.uint8]
    assert sum(value.nbytes for value in state.values()) < 2.15 * 4096
    assert optimizer.diagnostics()["gradient_mean"].isfinite()


def test_eight_bit_state_resumes_with_the_same_bits(tmp_path):
    params = parameters((80, 64), (7,))
    optimizer = NeuroPlastic(params, state_bits=8)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    copies = copy.deepcopy(params)
    resumed = NeuroPlastic(copies, state_bits=8)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for param, other in zip(params, copies, strict=True):
        param.grad = torch.randn_like(param)
        other.grad = param.grad.clone()
    optimizer.step()
    resumed.step()
    assert all(torch.equal(got, want) for got, want in zip(copies, params, strict=True))


@pytest.mark.parametrize(("saved_bits", "loaded_bits"), [(8, 32), (32, 8)])
def test_state_is_loaded_in_the_precision_of_the_loading_optimizer(saved_bits, loaded_bits):
    params = parameters((80, 64), (7,))
    saved = NeuroPlastic(params, state_bits=saved_bits)
    saved.step()
    loaded = NeuroPlastic(params, state_bits=loaded_bits)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.param_groups[0]["state_bits"] == loaded_bits
    assert ("scales" in loaded.state[params[0]]) == (loaded_bits == 8)
    back = NeuroPlastic(params, state_bits=32)
    back.load_state_dict(loaded.state_dict())
    exact = NeuroPlastic(params, state_bits=32)
    exact.load_state_dict(saved.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        got, want = back.state[params[0]][name], exact.state[params[0]][name]
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.02 * want.norm()
    loaded.step()
    assert loaded.state[params[0]]["step"] == 2


def test_scales_of_another_shape_are_refused():
    params = parameters((80, 64))
    optimizer = NeuroPlastic(params, state_bits=8)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["scales"] = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"scales of parameter 0 has shape \(3, 2\) where \(2, 80, 1\) is needed"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_eight_bit_state_trains_as_well(base):
    """Teacher and student of one hidden layer: the final loss lies within a tenth of float32 state's."""

    def final_loss(state_bits):
        torch.manual_seed(0)
        teacher, student = (
            torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 32)) for _ in range(2)
        )
        lr = 3e-3 if base == "adamw" else 0.05
        optimizer, losses = NeuroPlastic(student.parameters(), lr=lr, base=base, state_bits=state_bits), []
        for _ in range(150):
            x = torch.randn(64, 32)
            loss = torch.nn.functional.mse_loss(student(x), teacher(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses[0], sum(losses[-20:]) / 20

    (first, exact), (_, eight) = final_loss(32), final_loss(8)
    assert exact < 0.5 * first
    assert eight == pytest.approx(exact, rel=0.1)


def test_the_norm_of_a_scaled_loss_s_gradients_is_that_of_the_loss():
    grads = [torch.randn(5), torch.randn(3, 4)]
    factor = gradient_factor(grads, 0.5, None, False)
    scaled = gradient_factor([1024 * g for g in grads], 0.5, torch.tensor(1024.0), False)
    torch.testing.assert_close(1024 * scaled, factor, rtol=1e-5, atol=0)
    assert gradient_factor(grads, None, None, False) is None
    assert gradient_factor(grads, None, torch.tensor(4.0), False) == 0.25
    assert gradient_factor(grads, 1e9, None, False) == 1


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_a_bad_tensor_is_skipped_and_the_others_step_as_if_it_had_no_gradient(max_grad_norm):
    skipping, without = (parameters((5, 6), (7,)) for _ in range(2))
    optimizers = [NeuroPlastic(p, skip_nonfinite=True, max_grad_norm=max_grad_norm) for p in (skipping, without)]
    for bad in (torch.nan, torch.inf):
        skipping[0].grad[2, 3], without[0].grad = bad, None
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(skipping, without, strict=True))
    assert optimizers[0].state[skipping[0]]["step"] == 0
    assert optimizers[0].diagnostics()["skipped"] == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_norm_of_half_gradients_under_a_loss_scale_does_not_overflow(dtype):
    param = torch.nn.Parameter(torch.ones(1000, dtype=dtype))
    param.grad = (torch.full((1000,), 0.1) * 2**16).to(dtype)
    optimizer, scaler = NeuroPlastic([param], lr=0.1, max_grad_norm=1.0), torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    scaler.step(optimizer)
    torch.testing.assert_close(param.float(), torch.full((1000,), 0.9), rtol=1e-3, atol=0)


def test_the_default_dtype_of_torch_changes_nothing():
    params = parameters((80, 64))
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer = NeuroPlastic(params, state_bits=8)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in optimizer.state[params[0]].values()} == {torch.float32, torch.int8, torch.uint8}


def test_groups_round_with_numbers_of_their_own():
    params = [torch.nn.Parameter(torch.ones(3000, dtype=torch.bfloat16)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones_like(param)
    NeuroPlastic([{"params": [p]} for p in params], lr=1e-4, stochastic_rounding=True).step()
    assert (params[0] != params[1]).any()
