"""NeuroPlastic on the fused form: the same training as on the reference, and what happens where it cannot run."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import dispatch

pytest.importorskip("triton")


def train(device, backend, steps=10, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.GELU(), torch.nn.Linear(40, 3)).to(device)
    groups = [{"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1}]
    groups.append({"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0})
    optimizer = NeuroPlastic(groups, lr=0.02, backend=backend, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, y = torch.randn(32, 6).to(device), torch.randn(32, 3).to(device)
    for _ in range(steps):
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize(
    "options",
    [{"base": "adamw", "warmup_steps": 5}, {"base": "momentum", "max_grad_norm": 0.1}, {"base": "gradient"}],
    ids=str,
)
def test_training_is_that_of_the_reference(options, device):
    (fused, optimizer), (reference, _) = (train(device, backend, **options) for backend in ("fused", "reference"))
    for got, want in zip(fused.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert all(state["step"] == 10 for state in optimizer.state.values())


def test_a_resumed_run_has_the_same_bits(device, tmp_path):
    model, optimizer = train(device, "fused", steps=2)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    copies = [p.detach().clone().requires_grad_() for p in model.parameters()]
    groups = [[p for p in copies if p.ndim == 2], [p for p in copies if p.ndim == 1]]
    resumed = NeuroPlastic([{"params": group} for group in groups], backend="fused")
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for _ in range(2):
        for p, copy in zip(model.parameters(), copies, strict=True):
            p.grad = torch.randn_like(p)
            copy.grad = p.grad.clone()
        optimizer.step()
        resumed.step()
    assert all(torch.equal(p, copy) for p, copy in zip(model.parameters(), copies, strict=True))


def test_a_layer_dropped_now_and_then_changes_no_table(device):
    model, optimizer = train(device, "fused", steps=1)
    plans = [workspace["prepared"] for workspace in optimizer._workspace.values()]
    for p in model[0].parameters():
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in model[2].parameters()]
    optimizer.step()
    assert [workspace["prepared"] for workspace in optimizer._workspace.values()] == plans
    assert all(torch.equal(p, old) for p, old in zip(model[2].parameters(), before, strict=True))


def test_without_an_interpreter_the_cpu_cannot_run_it(monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"backend='fused' cannot run: .* got one on cpu; set TRITON_INTERPRET=1"):
        train("cpu", "fused", steps=1)


def test_without_triton_everything_runs_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    train("cpu", "auto", steps=1)
    with pytest.raises(RuntimeError, match=r"Triton is not installed \(pip install triton\)"):
        train("cpu", "fused", steps=1)
    on_cuda = SimpleNamespace(is_cuda=True, dtype=torch.float32, device="cuda:0")
    dispatch.say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert dispatch.select("plasticity_step", "auto", [on_cuda]) is dispatch.FORMS["plasticity_step"].reference
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == len(caplog.records) == 1


@pytest.mark.gpu
def test_cuda_parameters_take_it_by_default_and_a_new_learning_rate_compiles_nothing():
    from neuroplastic_kernels.plasticity_step.fused_kernels import step_kernel

    _, optimizer = train("cuda", "auto", steps=1)
    assert all("prepared" in workspace for workspace in optimizer._workspace.values())
    assert all(state["step"].is_cuda for state in optimizer.state.values())
    compiled = len(step_kernel.device_caches[torch.cuda.current_device()][0])
    train("cuda", "auto", steps=6, warmup_steps=0)
    assert len(step_kernel.device_caches[torch.cuda.current_device()][0]) == compiled


@pytest.mark.gpu
def test_grad_scaler_leaves_out_an_overflowed_step_without_waiting():
    model, optimizer = train("cuda", "auto", steps=1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    scaler.scale(torch.zeros(1, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler.step(optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(state["step"] == 1 for state in optimizer.state.values())
