"""Factors on the steps of single neurons, in the reference and the fused form."""

import copy
import importlib
import pickle

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import NeuronFactor, plasticity_step

BASES = ("gradient", "adamw", "momentum")
SHAPES = (((6, 11), 0), ((6, 11), 1), ((9,), 0), ((4, 3, 5, 2), 0), ((4, 3, 5, 2), -2), ((70, 251), 1), ((70, 251), 0))


class Problem:
    """Parameters, their state and gradients, the same for the same arguments."""

    def __init__(self, device, shapes, dtype=torch.float32, eight_bit=False):
        self.generator = torch.Generator().manual_seed(5)
        self.params = [self.draw(shape).to(device, dtype) for shape in shapes]
        dtypes = (torch.uint8, torch.int8, torch.uint8) if eight_bit else (torch.float32,) * 3
        self.state = [[torch.zeros_like(p, dtype=dtype) for p in self.params] for dtype in dtypes]
        self.steps = [torch.zeros((), device=device) for _ in shapes]
        self.scales = [torch.zeros(3, -(-p.numel() // 256), device=device) for p in self.params] if eight_bit else None
        self.workspace = {}

    def draw(self, shape):
        return torch.randn(shape, generator=self.generator)

    def step(self, backend, factors, **options):
        grads = [self.draw(p.shape).to(p.device, p.dtype) for p in self.params]
        plasticity_step(
            self.params, grads, *self.state, self.steps, scales=self.scales, backend=backend, neuron_factors=factors,
            workspace=self.workspace, **{"lr": 0.1, "base": "adamw", "betas": (0.9, 0.99), **options},
        )  # fmt: skip
        return self

    def tensors(self):
        return [*self.params, *(tensor for each in self.state for tensor in each)]


def factors_for(problem, dims, make):
    """NeuronFactors of `make(N)` for each parameter."""
    device = problem.params[0].device
    sizes = [p.shape[dim] for p, dim in zip(problem.params, dims, strict=True)]
    return [NeuronFactor(make(size).to(device), dim) for size, dim in zip(sizes, dims, strict=True)]


def random_factors(size):
    return torch.rand(size, generator=torch.Generator().manual_seed(size)) * 2


UNIT = [{"base": base, "weight_decay": 0.1} for base in BASES]
UNIT += [{"strength": 0.0}, {"max_grad_norm": 0.5, "warmup_steps": 3}]


@pytest.mark.parametrize("options", UNIT, ids=str)
def test_factors_of_one_change_no_bit(options, where):
    device, backend = where
    shapes, dims = zip(*SHAPES[1:5:2], strict=True)
    plain, unit = Problem(device, shapes), Problem(device, shapes)
    for _ in range(2):
        plain.step(backend, None, **options)
        unit.step(backend, factors_for(unit, dims, torch.ones), **options)
    assert all(torch.equal(a, b) for a, b in zip(plain.tensors(), unit.tensors(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_a_step_with_factors_is_the_step_times_them(base, where):
    """On the parameters alone: the state is that of a step without, and homeostasis does not give back what they take."""
    device, backend = where
    shapes, dims = zip(*SHAPES, strict=True)
    plain, scaled = Problem(device, shapes), Problem(device, shapes)
    before = [p.clone() for p in plain.params]
    factors = factors_for(scaled, dims, random_factors)
    plain.step(backend, None, base=base)
    scaled.step(backend, factors, base=base)
    for start, p, q, factor in zip(before, plain.params, scaled.params, factors, strict=True):
        expected = torch.movedim(torch.movedim(p - start, factor.dim, -1) * factor.values, -1, factor.dim)
        torch.testing.assert_close(q - start, expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(plain.state[0], scaled.state[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"grad_scale": 8.0, "stochastic_rounding": True}], ids=str)
def test_a_factor_of_zero_freezes(options, dtype, where):
    device, backend = where
    options = {name: torch.tensor(v, device=device) if name == "grad_scale" else v for name, v in options.items()}
    problem = Problem(device, [(6, 11), (4, 3, 5)], dtype)
    before = [p.clone() for p in problem.params]
    factors = factors_for(problem, (0, 1), lambda size: (torch.arange(size) != 1).float())
    for _ in range(2):
        problem.step(backend, factors, **options)
    (rows, lanes), (old_rows, old_lanes) = problem.params, before
    assert torch.equal(rows[1], old_rows[1])
    assert torch.equal(lanes[:, 1], old_lanes[:, 1])
    assert (rows != old_rows).any(1).sum() == 5
    assert (lanes != old_lanes).any(2).any(0).sum() == 2


def test_decoupled_decay_acts_on_frozen_neurons(where):
    device, backend = where
    problem = Problem(device, [(6, 11)])
    before = problem.params[0].clone()
    problem.step(backend, factors_for(problem, (0,), torch.zeros), weight_decay=0.5, decoupled_weight_decay=True)
    torch.testing.assert_close(problem.params[0], before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_the_fused_form_is_the_reference(base, eight_bit, device):
    shapes, dims = zip(*SHAPES[-4:], strict=True)
    problems = Problem(device, shapes, eight_bit=eight_bit), Problem(device, shapes, eight_bit=eight_bit)
    for problem, backend in zip(problems, ("fused", "reference"), strict=True):
        factors = [None, *factors_for(problem, dims, random_factors)[1:]]
        problem.step(backend, factors, base=base)
        problem.step(backend, factors, base=base)
    for p, q in zip(*(problem.params for problem in problems), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-3 if eight_bit else 1e-5)


def test_blocks_and_chunks_find_the_same_neurons(device, monkeypatch):
    fused_module = importlib.import_module("neuroplastic_kernels.plasticity_step.fused")
    geometry = importlib.import_module("neuroplastic_kernels.plasticity_step.geometry").Geometry(256, 1024, warps=4)
    monkeypatch.setattr(fused_module, "geometry", lambda: geometry)
    problems = [Problem(device, [(23, 171), (23, 171), (5, 900)]) for _ in range(2)]
    for problem, backend in zip(problems, ("fused", "reference"), strict=True):
        problem.step(backend, factors_for(problem, (0, 1, 0), random_factors))
    for p, q in zip(*(problem.params for problem in problems), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_new_values_need_no_new_tables_but_new_tensors_do(device):
    problems = [Problem(device, [(6, 11), (9,)]) for _ in range(2)]
    fused = problems[0]
    held = []
    for problem, backend in zip(problems, ("fused", "reference"), strict=True):
        factors = factors_for(problem, (0, 0), torch.ones)
        for number in range(5):
            if number == 2:
                factors[0].values[3] = 0.25
            elif number == 3:
                factors = factors_for(problem, (1, 0), random_factors)
            elif number == 4:
                factors = None
            problem.step(backend, factors)
            if problem is fused:
                held.append(problem.workspace["prepared"])
    assert [held[0] is each for each in held] == [True, True, True, False, False]
    for p, q in zip(*(problem.params for problem in problems), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def optimizer_of(model, backend="auto"):
    return NeuroPlastic(
        [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias]}], lr=0.1, backend=backend
    )


def with_gradients(model):
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    return model


def test_the_optimizer_takes_factors_for_some_of_its_parameters(where):
    device, backend = where
    model = with_gradients(torch.nn.Linear(5, 4)).to(device)
    optimizer = optimizer_of(model, backend)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    values = torch.ones(4, device=device)
    optimizer.neuron_factors[model.weight] = NeuronFactor(values, 0)
    for frozen in (2, 3):
        values.fill_(1)[frozen] = 0
        before = model.weight.detach().clone(), model.bias.detach().clone()
        with_gradients(model)
        optimizer.step()
        moved = (model.weight != before[0]).any(1)
        assert moved.tolist() == [row != frozen for row in range(4)]
        assert (model.bias != before[1]).all()
    assert "neuron_factors" not in optimizer.state_dict()
    optimizer.load_state_dict(optimizer.state_dict())
    assert model.weight in optimizer.neuron_factors


def test_factors_shrink_the_step_that_diagnostics_report():
    model = with_gradients(torch.nn.Linear(5, 4, bias=False))
    optimizer = NeuroPlastic(model.parameters(), lr=0.0)
    optimizer.step()
    whole = optimizer.diagnostics()
    optimizer.neuron_factors[model.weight] = NeuronFactor(torch.full((5,), 0.5), 1)
    halved = optimizer.diagnostics()
    torch.testing.assert_close(halved["update_gradient_ratio"], whole["update_gradient_ratio"] / 2)
    assert halved["alpha_mean"] == whole["alpha_mean"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_has_factors_of_its_own(copied):
    model = with_gradients(torch.nn.Linear(5, 4))
    optimizer = optimizer_of(model)
    optimizer.neuron_factors[model.bias] = NeuronFactor(torch.zeros(4), 0)
    twin = copied(optimizer)
    (weight,), (bias,) = (group["params"] for group in twin.param_groups)
    assert list(twin.neuron_factors) == [bias]
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    before = bias.detach().clone()
    twin.step()
    assert torch.equal(bias, before)
    optimizer.neuron_factors[model.bias].values.fill_(1)
    assert twin.neuron_factors[bias].values.sum() == 0


def test_an_optimizer_pickled_without_factors_has_none():
    optimizer = optimizer_of(torch.nn.Linear(5, 4))
    state = optimizer.__getstate__()
    del state["neuron_factors"]
    old = NeuroPlastic.__new__(NeuroPlastic)
    old.__setstate__(state)
    assert old.neuron_factors == {}


BAD = {
    "shape": (lambda: NeuronFactor(torch.ones(5), 0), r"float32 tensor of shape \(4,\) .*; got .* of shape \(5,\)"),
    "dtype": (lambda: NeuronFactor(torch.ones(4).double(), 0), r"must be a contiguous float32 .* got torch.float64"),
    "device": (lambda: NeuronFactor(torch.ones(4, device="meta"), 0), "on cpu; got torch.float32 of shape .* on meta"),
    "stride": (lambda: NeuronFactor(torch.ones(8)[::2], 0), "must be a contiguous .* got non-contiguous"),
    "dim": (lambda: NeuronFactor(torch.ones(4), 2), "dim from -2 to 1; got 2"),
    "no dim": (lambda: NeuronFactor(torch.ones(4), None), "dim from -2 to 1; got None"),
    "a tensor": (lambda: torch.ones(4), r"must be a NeuronFactor\(values, dim\) .* got Tensor"),
    "a list": (lambda: NeuronFactor([1.0] * 4, 0), r"whose values are a tensor; got NeuronFactor of a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_factors_that_do_not_fit_are_refused_and_nothing_changes(case, where):
    device, backend = where
    if device != "cpu":
        pytest.skip("the messages name the CPU")
    make, message = BAD[case]
    model = with_gradients(torch.nn.Linear(5, 4))
    optimizer = optimizer_of(model, backend)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.neuron_factors[model.weight] = make()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_factors_of_a_parameter_the_optimizer_does_not_hold_are_refused():
    optimizer = optimizer_of(with_gradients(torch.nn.Linear(5, 4)))
    optimizer.neuron_factors[torch.nn.Parameter(torch.ones(3, 2))] = NeuronFactor(torch.ones(3), 0)
    with pytest.raises(ValueError, match=r"entry for \(3, 2\), which is no parameter of this optimizer: remove it"):
        optimizer.step()
