"""The compiled CPU form of `plasticity_step` against the reference, and against itself on other numbers of threads."""

import pytest
import torch
from native_step import BASES, BLOCK, assert_identical, draw, factors, needs_compiler, state_dtype

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import NeuronFactor, gradient_squares, plasticity_step, select
from neuroplastic_kernels.plasticity_step.tensor_table import takes

pytestmark = needs_compiler
SHAPES = [(), (1,), (7, 13), (BLOCK - 1,), (BLOCK,), (2 * BLOCK + 5,)]
CASES = {
    "default": {},
    "warm-up": {"warmup_steps": 3},
    "scale 2 and warm-up": {"plasticity_scale": 2.0, "warmup_steps": 2},
    "scale 0": {"plasticity_scale": 0.0},
    "gradient signal": {"signals": "gradient"},
    "half strength": {"strength": 0.5},
    "no strength": {"strength": 0.0},
    "coupled decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "ascent with coupled decay": {"maximize": True, "weight_decay": 0.1},
    "no limits": {"max_update_norm": None, "homeostatic_rate": 0.0},
    "other constants": {
        "trace_decay": 0.8, "signal_weights": (0.1, 0.2, 0.7), "alpha_range": (0.5, 1.2), "max_update_norm": 3.0,
        "target_rms": 5.0, "homeostatic_rate": 0.05, "eps": 1e-3,
    },
    "a tensor as learning rate": {"lr": torch.tensor(0.07, dtype=torch.float64)},
    "a limit for all gradients": {"max_grad_norm": 0.5},
    "a scaled loss": {"grad_scale": torch.tensor(4.0, dtype=torch.float64), "max_grad_norm": 0.5},
}  # fmt: skip


def run(params, gradients, compile, **options):
    """Parameters and state after a step for each list of gradients."""
    params = [p.clone(memory_format=torch.preserve_format) for p in params]
    states = [[torch.zeros_like(p, dtype=state_dtype(p.dtype)) for p in params] for _ in range(3)]
    steps, workspace = [torch.zeros(()) for _ in params], {}
    options = {"lr": 0.03, "betas": (0.9, 0.97), **options}
    for grads in gradients:
        plasticity_step(params, grads, *states, steps, compile=compile, workspace=workspace, **options)
    return [params, *states, steps]


def assert_same(got, want, **tolerance):
    for actual, expected in zip(got, want, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", BASES)
def test_the_compiled_step_is_the_reference(base, case):
    params = [draw(shape) for shape in SHAPES]
    gradients = [[draw(shape, seed=seed) for shape in SHAPES] for seed in range(1, 5)]
    compiled, reference = (run(params, gradients, flag, base=base, **CASES[case]) for flag in (True, False))
    assert_same(compiled, reference, rtol=1e-11, atol=1e-12)


DECAYS = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]


@pytest.mark.parametrize("decay", DECAYS, ids=["no decay", "coupled", "decoupled"])
@pytest.mark.parametrize("base", BASES)
def test_single_precision_follows_the_reference(base, decay):
    params = [draw(shape, torch.float32) for shape in SHAPES]
    gradients = [[draw(shape, torch.float32, seed) for shape in SHAPES] for seed in range(1, 5)]
    compiled, reference = (run(params, gradients, flag, base=base, **decay) for flag in (True, False))
    assert_same(compiled, reference, rtol=4e-6, atol=1e-6)


@pytest.mark.parametrize("decay", DECAYS, ids=["no decay", "coupled", "decoupled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_half_precision_follows_the_reference(base, dtype, decay):
    """Up to the rare parameter whose float32 value falls so near a tie that the order of sums decides its rounding."""
    params = [draw(shape, dtype) for shape in SHAPES]
    gradients = [[draw(shape, dtype, seed) for shape in SHAPES] for seed in range(1, 5)]
    compiled, reference = (run(params, gradients, flag, base=base, **decay) for flag in (True, False))
    for got, want in zip(compiled[0], reference[0], strict=True):
        assert got.dtype == dtype
        assert (got != want).double().mean() < 2e-3
        torch.testing.assert_close(got, want, rtol=0, atol=4 * torch.finfo(dtype).eps)
    if "decoupled_weight_decay" in decay or not decay:  # otherwise such a parameter reaches the state
        assert_same(compiled[1:], reference[1:], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_to_the_nearest_and_ties_to_even(dtype):
    """Where a step is one exact sum, every bit is the reference's."""
    params = torch.cat([torch.ones(16), 1e38 * torch.ones(2), torch.tensor([float("inf"), float("nan"), -0.0, 1e-40])])
    grads = torch.cat([-torch.arange(16) / 4 * torch.finfo(dtype).eps, torch.tensor([-3e38, 1e-3, 1, 1, 0.0, 0.0])])
    exact = {"base": "gradient", "lr": 1.0, "strength": 0.0, "max_update_norm": None, "homeostatic_rate": 0.0}
    got, want = (run([params.to(dtype)], [[grads.to(dtype)]], flag, **exact)[0][0] for flag in (True, False))
    assert got[:3].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_a_nan_of_any_bits_stays_one_in_bfloat16():
    state = [torch.zeros(1), torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32), torch.zeros(1)]
    param, grad, step = torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16), torch.zeros(())
    lists = [[stream] for stream in (param, grad, *state, step)]
    plasticity_step(*lists, compile=True, lr=0.1, base="momentum", betas=(0.9, 0.99), strength=0.0)
    assert param.isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.0}, {"signals": "gradient"}, {"max_update_norm": None}], ids=str
)
@pytest.mark.parametrize("base", BASES)
def test_a_bad_gradient_does_what_it_does_in_the_reference(base, options, bad):
    params, gradients = [draw((50,))], [[draw((50,), seed=seed)] for seed in range(1, 5)]
    gradients[1][0][3] = bad
    compiled, reference = (run(params, gradients, flag, base=base, **options) for flag in (True, False))
    assert not compiled[0][0].isfinite().all()
    assert_same(compiled, reference, rtol=1e-11, atol=1e-12)


def test_huge_gradients_overflow_as_in_the_reference():
    gradients = [[draw((50,), torch.float32, seed) * 1e30] for seed in range(1, 3)]
    compiled, reference = (run([draw((50,), torch.float32)], gradients, flag, base="adamw") for flag in (True, False))
    assert_same(compiled, reference, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_no_bit_depends_on_the_number_of_threads(base, dtype):
    shapes = [(41 * BLOCK + 77,), *SHAPES, (4 * BLOCK,), (7 * BLOCK + 1,), *[(3,)] * 50]
    params, gradients = [draw(s, dtype) for s in shapes], [[draw(s, dtype, k) for s in shapes] for k in range(1, 4)]
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            results.append(run(params, gradients, True, base=base))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_identical(result, results[0])


def test_no_bit_depends_on_neighbours_in_the_list():
    params, grads = ([draw(shape, torch.float32, seed) for shape in SHAPES] for seed in (0, 1))
    together = run(params, [grads], True, base="adamw")
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        alone = run([param], [[grad]], True, base="adamw")
        assert_identical([[each[index]] for each in together], alone)


def test_no_bit_depends_on_the_alignment():
    param, grad = draw((BLOCK + 9,), torch.float32), draw((BLOCK + 9,), torch.float32, 1)
    shifted = torch.empty(BLOCK + 10)[1:].copy_(grad)
    assert_identical(run([param], [[shifted]], True, base="adamw"), run([param], [[grad]], True, base="adamw"))


def test_empty_tensors_and_missing_gradients_are_passed_by():
    params = [draw((0,)), draw((5,)), draw((6,)), draw((3, 0))]
    grads = [draw((0,)), None, draw((6,), seed=1), draw((3, 0))]
    got = run(params, [grads], True, base="adamw")
    assert torch.equal(got[0][1], params[1])
    assert not torch.equal(got[0][2], params[2])
    assert [step.item() for step in got[-1]] == [1, 0, 1, 1]


def test_found_inf_leaves_everything_alone():
    param, grads = draw((5,)), [draw((5,), seed=1)]
    stopped = run([param], [grads], True, base="adamw", found_inf=torch.tensor(1.0))
    assert torch.equal(stopped[0][0], param)
    assert stopped[-1][0] == 0
    assert_identical(run([param], [grads], True, base="adamw", found_inf=torch.tensor(0.0)),
                     run([param], [grads], True, base="adamw"))  # fmt: skip


ROUTED = {
    "a parameter that is not contiguous": (draw((6, 4)).t(), draw((4, 6), seed=1)),
    "a gradient that is not contiguous": (draw((4, 6)), draw((6, 4), seed=1).t()),
    "a gradient whose sign is turned in a flag": (draw((4, 6)), torch._neg_view(draw((4, 6), seed=1))),
    "a gradient of another dtype": (draw((4, 6), torch.bfloat16), draw((4, 6), torch.float32, 1)),
}


@pytest.mark.parametrize("case", ROUTED)
def test_what_the_compiled_step_does_not_take_goes_to_the_reference(case):
    param, grad = ROUTED[case]
    neighbour = draw((9,))
    state = torch.zeros_like(param, dtype=state_dtype(param.dtype))
    assert not takes(param, grad, state, state, state)
    options = {"base": "adamw", "grad_scale": torch.tensor(2.0), "max_grad_norm": 0.3}
    compiled, reference = (run([param, neighbour], [[grad, neighbour]], flag, **options) for flag in (True, False))
    assert_identical([each[:1] for each in compiled], [each[:1] for each in reference])
    assert_same(compiled, reference)


def test_state_of_another_dtype_is_not_taken():
    double, single, half = (torch.zeros(3, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16))
    assert takes(double, double, double, double, double)
    assert takes(half, half, single, single, single)
    assert not takes(half, half, half, half, half)
    assert not takes(single, single, single, double, single)
    assert not takes(single, single, *[torch.zeros(3, dtype=torch.uint8)] * 3)


NEURONS = {  # shape, dim: neurons in rows, in columns (also counted from the end), between both, alone, and one only
    "rows": ((5, 7), 0), "columns": ((5, 7), -1), "kernels": ((3, 4, 5), 1), "bias": ((6,), 0), "one": ((4, 1), 1),
    "rows of more than a block": ((3, BLOCK + 5), 0), "columns over blocks": ((BLOCK // 8 + 1, 17), 1),
}  # fmt: skip


@pytest.mark.parametrize("decay", DECAYS, ids=["no decay", "coupled", "decoupled"])
@pytest.mark.parametrize("case", NEURONS)
def test_neuron_factors_are_the_reference_s(case, decay):
    shape, dim = NEURONS[case]
    params, gradients = [draw(shape), draw((9,))], [[draw(shape, seed=k), draw((9,), seed=k)] for k in range(1, 4)]
    options = {"base": "adamw", "neuron_factors": [factors(shape, dim), None], **decay}
    compiled, reference = (run(params, gradients, flag, **options) for flag in (True, False))
    assert_same(compiled, reference, rtol=1e-11, atol=1e-12)
    assert not torch.equal(compiled[0][0], run(params, gradients, True, **{**options, "neuron_factors": None})[0][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", NEURONS)
def test_neuron_factors_of_one_change_no_bit_and_of_zero_leave_the_neuron_alone(case, dtype):
    shape, dim = NEURONS[case]
    params, gradients = [draw(shape, dtype)], [[draw(shape, dtype, k)] for k in range(1, 4)]
    values = torch.ones(shape[dim])
    plain, ones = (run(params, gradients, True, base="adamw", neuron_factors=f)
                   for f in (None, [NeuronFactor(values, dim)]))  # fmt: skip
    assert_identical(ones, plain)
    values[-1] = 0
    frozen = run(params, gradients, True, base="adamw", neuron_factors=[NeuronFactor(values, dim)])
    got, want, start = (each.movedim(dim, 0) for each in (frozen[0][0], plain[0][0], params[0]))
    assert torch.equal(got[:-1], want[:-1])
    assert torch.equal(got[-1], start[-1])
    assert_identical(frozen[1:], plain[1:])


def test_neuron_factors_reach_the_tensors_that_go_to_the_reference():
    param, grad = ROUTED["a parameter that is not contiguous"]
    options = {"base": "adamw", "neuron_factors": [factors(param.shape, 0)]}
    compiled, reference = (run([param], [[grad]], flag, **options) for flag in (True, False))
    assert_identical(compiled, reference)


def test_gradients_of_several_lists_are_clipped_by_their_common_norm():
    params, grads = [draw((40,)), draw((30,))], [draw((40,), seed=1), draw((30,), seed=2)]
    options = {"base": "adamw", "max_grad_norm": 0.5, "eps": 1.0}
    together = run(params, [grads], True, **options)
    squares = gradient_squares(grads)
    apart = [run([p], [[g]], True, gradient_squares=squares, **options) for p, g in zip(params, grads, strict=True)]
    for index, alone in enumerate(apart):
        assert_same(alone, [[each[index]] for each in together], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(run(params[:1], [grads[:1]], True, **options)[0][0], together[0][0])


def test_inference_tensors_are_stepped():
    with torch.inference_mode():
        params, gradients = [draw((30,))], [[draw((30,), seed=seed)] for seed in range(1, 4)]
        compiled, reference = (run(params, gradients, flag, base="adamw") for flag in (True, False))
        assert_same(compiled, reference, rtol=1e-11, atol=1e-12)


def test_autograd_notices_the_step():
    weight = torch.nn.Parameter(draw((4,)))
    optimizer = NeuroPlastic([weight], lr=0.1, compile=True)
    weight.square().sum().backward()
    loss = weight.square().sum()  # needs the weight as it is now
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_stochastic_rounding_goes_to_the_reference():
    param, grads = draw((64,), torch.bfloat16), [draw((64,), torch.bfloat16, 1)]
    options = {"base": "adamw", "stochastic_rounding": True, "seed": 3}
    assert_identical(*(run([param], [grads], flag, **options) for flag in (True, False)))


@pytest.mark.parametrize("compile", [False, True])
def test_twice_n_steps_are_n_steps_saved_and_n_more(compile):
    shapes = [(3, 5), (BLOCK + 3,)]
    gradients = [[draw(s, torch.float32, k) for s in shapes] for k in range(6)]

    def steps(optimizer, chosen):
        for grads in chosen:
            for param, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
                param.grad = grad
            optimizer.step()

    def build(values):
        return NeuroPlastic([torch.nn.Parameter(value.clone()) for value in values], warmup_steps=4, compile=compile)

    whole = build([draw(s, torch.float32) for s in shapes])
    steps(whole, gradients)
    first = build([draw(s, torch.float32) for s in shapes])
    steps(first, gradients[:3])
    second = build([param.detach() for param in first.param_groups[0]["params"]])
    second.load_state_dict(first.state_dict())
    steps(second, gradients[3:])
    for got, want in zip(second.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
        assert torch.equal(got, want)


def test_other_devices_and_other_forms_are_refused():
    meta = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError, match=r"compile=True is for CPU tensors, got one on meta; leave compile=False"):
        plasticity_step([meta], [meta], [meta], [meta], [meta], [torch.zeros(())], compile=True, lr=0.1, base="adamw",
                        betas=(0.9, 0.99))  # fmt: skip
    with pytest.raises(ValueError, match=r"compile=True and backend='fused' name two forms"):
        NeuroPlastic([torch.nn.Parameter(torch.zeros(3))], compile=True, backend="fused")
    with pytest.raises(ValueError, match="neuron_reinit has no native form"):
        select("neuron_reinit", "auto", compile=True)


def test_an_unknown_keyword_and_unequal_lists_are_refused():
    p = [torch.zeros(2)]
    state = [p, p, p, p, p, [torch.zeros(())]]
    options = {"lr": 0.1, "base": "adamw", "betas": (0.9, 0.99), "compile": True}
    with pytest.raises(TypeError, match="beta3"):
        plasticity_step(*state, **options, beta3=1)
    with pytest.raises(ValueError, match="lists of tensors must be of one length"):
        plasticity_step([], *state[1:], **options)
