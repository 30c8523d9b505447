"""What the optimizers say of a step: taken or not, complete or not, by which loss scale."""

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from tiny import tiny_mlp
from torch.distributed.optim import ZeroRedundancyOptimizer

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic
from hf_neuroplastic.neurons.operate.optimizers import Optimizers

EAGER = DropInConfig(interval=1, maturity=0, max_fraction=0.2, threshold=float("inf"), stop=None)
OPTIMIZERS = {"adamw": torch.optim.AdamW, "neuroplastic": NeuroPlastic}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_micro_batches_are_no_steps(make):
    accelerator, model = Accelerator(cpu=True, gradient_accumulation_steps=4), tiny_mlp()
    dropin = DropIn(model, EAGER)
    model, optimizer = accelerator.prepare(model, make(model.parameters(), lr=1e-3))
    counts = []
    for _ in range(8):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.randn(4, 6)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
            dropin.step(optimizer)
        counts.append((dropin.step_count, dropin.events))
    assert counts == [(0, 0)] * 3 + [(1, 1)] * 4 + [(2, 2)]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_that_overflows_under_accelerate_is_none(make):
    Accelerator(cpu=True)
    model = tiny_mlp()
    inner = make(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    steps = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5)
    scheduler = AcceleratedScheduler(steps, optimizer, step_with_optimizer=True, split_batches=True)
    dropin = DropIn(model, EAGER)
    for bad in (True, False, True):
        scaler.scale(model(torch.randn(8, 6)).square().mean()).backward()
        if bad:
            model[2].weight.grad[0, 0] = float("inf")
        optimizer.step()
        scheduler.step()
        dropin.step(optimizer)
        optimizer.zero_grad()
    assert dropin.step_count == 1
    assert inner.param_groups[0]["lr"] == 5e-4
    assert int(inner.state[model[0].weight]["step"]) == 1


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_the_loss_scale_is_that_of_the_step_though_it_has_grown_since(interval):
    Accelerator(cpu=True)
    model = tiny_mlp()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=interval)
    optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), scaler=scaler)
    assert Optimizers(optimizer).loss_scale() == 1.0  # before the first backward pass
    for _ in range(5):
        loss = model(torch.randn(8, 6)).square().mean()
        scaled = scaler.scale(loss)
        used = float(scaled / loss)
        scaled.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert float(Optimizers(optimizer).loss_scale()) == pytest.approx(used, rel=1e-5)


def test_state_in_the_shards_of_zero_redundancy_is_reset(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = tiny_mlp()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=1e-2)
        aged = DropIn(model, DropInConfig(max_fraction=0.0, old_plasticity=0.5))
        plastic = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=NeuroPlastic, lr=1e-2)
        plastic.optim.param_groups[0]["params"] = [model[0].bias, model[2].weight]  # as where another rank has the rest
        aged.scale_steps(plastic)
        assert set(map(id, plastic.optim.neuron_factors)) == {id(model[0].bias), id(model[2].weight)}
        aged.unpatch()
        assert not plastic.optim.neuron_factors
        dropin = DropIn(model, EAGER)
        for _ in range(3):
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            dropin.step(optimizer)
        new = dropin.statistics[0].age == 0
        moments = optimizer.optim.state[model[0].weight]["exp_avg"]
        assert new.sum() == 2
        assert not moments[new].any()
        assert moments[~new].any()
    finally:
        dist.destroy_process_group()


def test_a_failed_attempt_is_forgotten():
    model = tiny_mlp()
    dropin, again = DropIn(model, EAGER), torch.randn(4, 6)
    model(torch.randn(64, 6)).sum().backward()
    dropin.discard()  # out of memory, say: tried again with less
    model.zero_grad()
    model(again).sum().backward()
    dropin.step()
    twin = tiny_mlp()
    clean = DropIn(twin, EAGER)
    twin(again).sum().backward()
    clean.step()
    assert torch.equal(dropin.statistics[0].averages, clean.statistics[0].averages)
