"""What only the fused step has: blocks, launches, and the random numbers of the reference."""

import importlib

import pytest
import torch
from steps import BASES, Problem, assert_close, both, cut_into

fused_module = importlib.import_module("neuroplastic_kernels.plasticity_step.fused")


@pytest.mark.parametrize("base", BASES)
def test_blocks_and_chunks_only_order_the_sums(base, device, monkeypatch):
    cut_into(monkeypatch, 256, 1024)
    assert_close(*both(device, 2, {"sizes": [(1300,), (4096,)]}, base=base))


def test_no_chunk_is_forgotten(device, monkeypatch):
    """There are more than are joined at a time."""
    cut_into(monkeypatch, 256, 256)
    problem = Problem(device, [(256 * 513 + 1,)])
    problem.step(
        "fused", [torch.cat([problem.params[0][1:], problem.params[0].new_full((1,), torch.nan)])], skip_nonfinite=True
    )
    assert problem.states[0]["skipped"] == 1


@pytest.mark.parametrize("base", BASES)
def test_stochastic_rounding_draws_the_reference_s_numbers(base, device):
    problem, options = (
        {"sizes": [(17000,), (33,)], "dtypes": (torch.bfloat16,)},
        {"base": base, "stochastic_rounding": True},
    )
    for seed in (5, 2**40 + 5, 2**64 - 3):
        fused, reference = both(device, 2, problem, seed=seed, **options)
        same = torch.cat([(a == b).flatten() for a, b in zip(fused.params, reference.params, strict=True)])
        assert same.float().mean() > 0.998  # the last digit of float32 decides about the others
    other = Problem(device, **problem).run("fused", 2, seed=6, **options)
    assert (fused.params[0] != other.params[0]).float().mean() > 0.01


def test_random_numbers_belong_to_a_tensor_s_place_in_the_list(device):
    """Whichever form a tensor and those before it take."""
    tensors = {}
    for turned in (False, True):
        problem = Problem(device, [(70, 80), (50, 60), (40, 30)], [torch.bfloat16])
        if turned:
            problem.params[1] = problem.params[1].t().contiguous().t()
        problem.run("fused", 1, strength=0.0, stochastic_rounding=True)
        tensors[turned] = problem.params
    for got, want in zip(tensors[True], tensors[False], strict=True):
        assert (got == want).float().mean() > 0.998


@pytest.mark.parametrize(
    ("options", "launches"), [({}, 2), ({"skip_nonfinite": True}, 4), ({"statistics": "exact"}, 6)]
)
def test_many_tensors_take_as_many_launches_as_one(options, launches, device, monkeypatch):
    seen = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            seen.append(grid)
            return self.kernel[grid]

    for name in ("step_kernel", "join_kernel"):
        monkeypatch.setattr(fused_module, name, Counted(getattr(fused_module, name)))
    sizes = [(1 + index % 7,) for index in range(100)]
    fused, reference = both(device, 1, {"sizes": sizes}, **options)
    assert seen == [(100,)] * launches
    assert_close(fused, reference)


def test_writes_are_counted(device):
    problem = Problem(device, [(3,), (4,)])
    problem.step("fused", [problem.gradients()[0], None])
    assert [p._version for p in problem.params] == [1, 0]
