"""What only a CUDA device shows: graphs, waiting, allocations."""

import pytest
import torch
from fused_step import BASES, HALVES, Problem, assert_close, assert_same_bits


def capture(problem, gradients, **options):
    """A CUDA graph of one step of `problem`, after one step outside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        problem.step("fused", gradients, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        problem.step("fused", gradients, **options)
    return graph


@pytest.mark.gpu
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_captured_step_is_the_step(base, eight_bit):
    rate = torch.tensor(0.01, device="cuda")
    options = {"base": base, "lr": rate, "warmup_steps": 3, "max_grad_norm": 1.0, "stochastic_rounding": True}
    captured, plain = (Problem("cuda", dtypes=(torch.float32, torch.bfloat16), eight_bit=eight_bit) for _ in range(2))
    static = captured.gradients()
    plain.step("fused", plain.gradients(), **options)
    graph = capture(captured, static, **options)
    for number in range(3):
        rate.fill_(0.01 / (number + 1))
        for held, new in zip(static, captured.gradients(), strict=True):
            held.copy_(new)
        graph.replay()
        plain.step("fused", plain.gradients(), **options)
        captured.run("fused", steps=1, **options)  # a step outside, with other gradients, disturbs nothing
        plain.run("fused", steps=1, **options)
    assert_same_bits(captured, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("eight_bit", [False, True])
def test_nothing_waits_for_the_device_and_nothing_is_allocated(eight_bit):
    problem = Problem("cuda", dtypes=HALVES, eight_bit=eight_bit)
    options = {
        "max_grad_norm": 1.0,
        "grad_scale": torch.ones((), device="cuda"),
        "found_inf": torch.zeros((), device="cuda"),
    }
    gradients = problem.gradients()
    problem.step("fused", gradients, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        problem.step("fused", gradients, **options)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        problem.step("fused", [g.clone() for g in gradients], **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_reference_with_counters_on_the_device_can_be_captured():
    captured, plain = Problem("cuda"), Problem("cuda")
    plain.steps = [step.cpu() for step in plain.steps]
    options = {"warmup_steps": 3, "weight_decay": 0.1}
    gradients = captured.gradients()
    captured.step("reference", gradients, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step("reference", gradients, **options)
    graph.replay()
    for _ in range(2):
        plain.step("reference", gradients, **options)
    plain.steps = [step.cuda() for step in plain.steps]
    assert_close(captured, plain)
