"""What only a CUDA device shows: graphs, waiting, allocations, tensors of many chunks."""

import pytest
import torch
from steps import BASES, HALVES, Problem, assert_close, assert_same_bits, both

pytestmark = pytest.mark.gpu


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


@pytest.mark.parametrize("statistics", ["previous", "exact"])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_captured_step_is_the_step(base, eight_bit, statistics):
    rate = torch.tensor(0.01, device="cuda")
    options = {"base": base, "lr": rate, "warmup_steps": 3, "stochastic_rounding": True, "statistics": statistics}
    options |= {"skip_nonfinite": True, "gradient_factor": torch.tensor(0.5, device="cuda")}
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
        captured.run("fused", 1, **options)  # a step outside, with other gradients, disturbs nothing
        plain.run("fused", 1, **options)
    assert_same_bits(captured, plain)


@pytest.mark.parametrize("keeps", [True, False], ids=["table of before", "table of its own"])
def test_a_graph_of_gradients_that_it_makes_itself(keeps):
    """Their addresses are known in the graph alone; steps and graphs after it write over nothing that it reads."""
    captured, plain = Problem("cuda"), Problem("cuda")
    source = captured.gradients()
    captured.step("fused", [g * 2 for g in source])
    if not keeps:
        captured.workspace.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step("fused", [g * 2 for g in source])
        torch.cat([g.flatten() for g in source]).mul(3).sum()  # takes memory that the step gave back
    plain.step("fused", [g * 2 for g in source])
    for _ in range(3):
        graph.replay()
        plain.step("fused", [g * 2 for g in source])
        for problem in (captured, plain):
            problem.step("fused", [g.clone() for g in source])
        junk = [torch.full((n,), -1, dtype=torch.int64, device="cuda") for n in (1, 5, 75, 1000) for _ in range(20)]
        del junk
    assert_same_bits(captured, plain)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_nothing_waits_for_the_device_and_nothing_is_allocated(eight_bit):
    problem = Problem("cuda", dtypes=HALVES, eight_bit=eight_bit)
    options = {"gradient_factor": torch.ones((), device="cuda"), "found_inf": torch.zeros((), device="cuda")}
    options |= {"skip_nonfinite": True}
    gradients = problem.gradients()
    problem.step("fused", gradients, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        problem.step("fused", gradients, **options)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        problem.step("fused", [g.clone() for g in gradients], **options)
        problem.workspace.clear()
        problem.step("fused", gradients, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"statistics": "exact"}, {"base": "gradient"}], ids=str)
def test_a_tensor_of_more_chunks_than_are_joined_at_a_time(options):
    assert_close(*both("cuda", 2, {"sizes": [(2**24 + 3,), (5,)]}, **options))


def test_a_first_step_under_a_default_device():
    with torch.device("cuda"):
        problem = Problem("cuda")
        problem.generator = torch.Generator("cuda").manual_seed(1)
        problem.run("fused", 2)
    assert problem.states[0]["step"] == 2


def test_new_numbers_compile_nothing():
    from neuroplastic_kernels.plasticity_step.fused_kernels import join_kernel, step_kernel

    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in (step_kernel, join_kernel)]

    problem = Problem("cuda", dtypes=HALVES).run("fused", 1, weight_decay=0.1, warmup_steps=3)
    before = compiled()
    problem.run("fused", 2, lr=0.3, betas=(0.0, 0.5), weight_decay=0.2, warmup_steps=7, eps=1e-6, seed=1)
    assert compiled() == before


def test_the_reference_and_the_kernels_share_a_list_of_several_devices():
    problem, twin = Problem("cuda", [(30,), (40,)]), Problem("cuda", [(30,), (40,)])
    for each in (problem, twin):
        each.params[1] = each.params[1].cpu()
        each.states[1] = {name: tensor.cpu() for name, tensor in each.states[1].items()}
    for _ in range(2):
        problem.step("fused", [g.to(p.device) for g, p in zip(problem.gradients(), problem.params, strict=True)])
        twin.step("reference", [g.to(p.device) for g, p in zip(twin.gradients(), twin.params, strict=True)])
    assert_close(problem, twin)
