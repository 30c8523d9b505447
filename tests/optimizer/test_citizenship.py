"""NeuroPlastic as a torch optimizer: groups, state, schedulers, closures, and parameters of every kind."""

import copy
import io
import pickle

import pytest
import torch

from hf_neuroplastic import NeuroPlastic

BASES = ("gradient", "adamw", "momentum")
STATE = ("step", "exp_avg", "exp_avg_sq", "sums")


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((5, 4), (3,))]


def take_steps(optimizer, first, last):
    """Steps `first` to `last` - 1 with gradients that depend on the step's number alone."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def assert_same(one, other):
    """Bitwise the same parameters and state."""
    for group, twin in zip(one.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], twin["params"], strict=True):
            assert torch.equal(p, q)
            assert one.state[p].keys() == other.state[q].keys()
            for name, value in one.state[p].items():
                assert value.dtype == other.state[q][name].dtype
                assert torch.equal(value, other.state[q][name])


def twin_of(optimizer, **options):
    params = [torch.nn.Parameter(p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    return NeuroPlastic(params, **options)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_resumed_training_is_the_same_training(base, dtype):
    options = {"base": base, "warmup_steps": 8, "weight_decay": 0.1}
    optimizer = NeuroPlastic(parameters(dtype), lr=0.01, **options)
    take_steps(optimizer, 0, 5)
    resumed = twin_of(optimizer, lr=0.5)  # what it was built with gives way to what was saved
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(optimizer, resumed)
    for each in (optimizer, resumed):
        take_steps(each, 5, 10)
    assert_same(optimizer, resumed)


def test_loading_leaves_no_hook_behind():
    optimizer = NeuroPlastic(parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_trains_alike_and_apart(copied):
    optimizer = NeuroPlastic(parameters(), lr=0.01, backend="reference")
    take_steps(optimizer, 0, 3)
    twin = copied(optimizer)
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    take_steps(twin, 3, 6)
    assert all(torch.equal(p, q) for p, q in zip(optimizer.param_groups[0]["params"], before, strict=True))
    take_steps(optimizer, 3, 6)
    assert_same(optimizer, twin)
    assert twin.backend == "reference"


def test_accelerate_keeps_the_precision_of_the_state():
    accelerate = pytest.importorskip("accelerate")
    model = torch.nn.Linear(4, 3).to(torch.bfloat16)
    optimizer = NeuroPlastic(model.parameters(), lr=0.01)
    take_steps(optimizer, 0, 2)
    wanted = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()}
    wrapped = accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)
    for p, state in wanted.items():
        for name, value in state.items():
            got = wrapped.optimizer.state[p][name]
            assert got.dtype == torch.float32
            assert torch.equal(got, value)
    take_steps(wrapped, 2, 3)


@pytest.mark.parametrize("activity", ["rms", "trace"])
def test_the_state_is_adamw_s_and_five_sums(activity):
    p = torch.nn.Parameter(torch.zeros(30, 2, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    optimizer = NeuroPlastic([p], activity=activity)
    optimizer.step()
    state = optimizer.state[p]
    assert set(state) == {*STATE, *(["trace"] if activity == "trace" else [])}
    assert state["step"].shape == ()
    assert state["step"] == 1
    assert sum(value.nbytes for value in state.values()) == 4 + (8 if activity == "rms" else 12) * p.numel() + 20


@pytest.mark.parametrize("fused", [False, True])
def test_the_state_of_adamw_is_taken_and_given_back_without_loss(fused):
    """The first step after either is AdamW's own."""
    ours, theirs = parameters(), parameters()
    backend = "native" if fused else "reference"
    options = {"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.95)}
    adamw, optimizer = torch.optim.AdamW(theirs, fused=fused, **options), NeuroPlastic(ours, backend=backend)
    take_steps(adamw, 0, 3)
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q)
    optimizer.load_state_dict(through_a_file(adamw.state_dict()))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    for each in (optimizer, adamw):
        take_steps(each, 3, 4)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    take_steps(optimizer, 4, 6)
    back = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in ours], fused=fused)
    back.load_state_dict(through_a_file(optimizer.state_dict()))
    assert back.param_groups[0]["betas"] == (0.8, 0.95)
    for p, q in zip(ours, back.param_groups[0]["params"], strict=True):
        assert all(torch.equal(optimizer.state[p][name], back.state[q][name]) for name in STATE[:3])
    take_steps(back, 6, 7)


def test_a_trace_starts_anew_where_the_saved_state_has_none():
    rms, trace = NeuroPlastic(parameters()), NeuroPlastic(parameters(), activity="trace")
    take_steps(rms, 0, 2)
    state = rms.state_dict()
    del state["param_groups"][0]["activity"]
    trace.load_state_dict(state)
    for p in trace.param_groups[0]["params"]:
        assert not trace.state[p]["trace"].any()
    take_steps(trace, 2, 4)
    rms.load_state_dict(trace.state_dict())  # with its option
    assert all("trace" in rms.state[p] for p in rms.param_groups[0]["params"])


def test_sums_that_adamw_carried_along_are_not_taken_for_the_last_step_s():
    """The step after AdamW's is AdamW's own, and the one after that has a history again."""
    ours, theirs = NeuroPlastic(parameters()), torch.optim.AdamW(parameters())
    take_steps(ours, 0, 2)
    theirs.load_state_dict(ours.state_dict())
    take_steps(theirs, 2, 4)
    ours.load_state_dict(theirs.state_dict())
    assert not any(state["sums"].any() for state in ours.state.values())
    take_steps(ours, 4, 5)
    ours.load_state_dict(ours.state_dict())
    assert all(state["sums"].all() for state in ours.state.values())


def test_state_that_lacks_a_tensor_is_refused():
    optimizer = NeuroPlastic(parameters())
    take_steps(optimizer, 0, 1)
    first = optimizer.param_groups[0]["params"][0]
    del optimizer.state[first]["sums"]
    with pytest.raises(RuntimeError, match="the state of parameter 0 lacks sums"):
        take_steps(optimizer, 1, 2)
    pickled = optimizer.__getstate__()
    pickled["state"][first]["trace"] = torch.zeros_like(first)
    with pytest.raises(ValueError, match="NeuroPlastic of three passes"):
        NeuroPlastic.__new__(NeuroPlastic).__setstate__(pickled)


def test_state_is_laid_out_as_the_parameter_whatever_was_saved():
    turned = NeuroPlastic([torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))])
    take_steps(turned, 0, 1)
    straight = NeuroPlastic([torch.nn.Parameter(torch.randn(2, 3, 4, 4))])
    straight.load_state_dict(turned.state_dict())
    (saved,), (loaded,) = turned.state.values(), straight.state.values()
    assert loaded["exp_avg"].is_contiguous()
    assert torch.equal(saved["exp_avg"], loaded["exp_avg"])


def test_a_parameter_given_twice_is_refused():
    first, second = parameters()
    with (
        pytest.warns(UserWarning, match="duplicate"),
        pytest.raises(ValueError, match="group 0 holds a parameter twice"),
    ):
        NeuroPlastic([first, second, first])


@pytest.mark.parametrize("name", ["signal_weights", "alpha_range", "betas"])
def test_lists_serve_as_tuples(name):
    values = {"signal_weights": [0.4, 0.4, 0.2], "alpha_range": [0.2, 2.0], "betas": [0.9, 0.999]}
    lists, tuples = NeuroPlastic(parameters(), **{name: values[name]}), NeuroPlastic(parameters())
    for each in (lists, tuples):
        take_steps(each, 0, 2)
    assert all(torch.equal(p, q) for p, q in zip(*(o.param_groups[0]["params"] for o in (lists, tuples)), strict=True))


def test_amsgrad_s_state_is_refused():
    amsgrad, optimizer = torch.optim.AdamW(parameters(), amsgrad=True), NeuroPlastic(parameters())
    take_steps(amsgrad, 0, 1)
    with pytest.raises(ValueError, match=r"parameter 0 holds max_exp_avg_sq: .* amsgrad=True"):
        optimizer.load_state_dict(amsgrad.state_dict())


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("change", [{"activity": "trace"}, {"skip_nonfinite": True}], ids=str)
def test_an_option_that_is_changed_between_steps_counts_from_the_next(change, state_bits):
    """And back: the moments stay."""
    optimizer = NeuroPlastic([torch.nn.Parameter(torch.randn(80, 64))], state_bits=state_bits)
    (p,), group = optimizer.param_groups[0]["params"], optimizer.param_groups[0]
    take_steps(optimizer, 0, 2)
    before = {name: optimizer.state[p][name].clone() for name in ("exp_avg", "exp_avg_sq", "sums")}
    kept, rate = {name: group[name] for name in change}, group["lr"]
    for options in (change, kept):
        group.update(options, lr=0.0)
        p.grad = None
        optimizer.step()
        if state_bits == 32:
            assert all(torch.equal(optimizer.state[p][name], value) for name, value in before.items())
    group.update(change, lr=rate)
    take_steps(optimizer, 2, 4)
    assert {"activity": "trace", "skip_nonfinite": "skipped"}[next(iter(change))] in optimizer.state[p]
    if "skip_nonfinite" in change:
        p.grad[0, 0] = torch.nan
        optimizer.step()
        assert p.isfinite().all()
        assert optimizer.state[p]["skipped"] == 1


def test_a_state_of_another_optimizer_or_shape_changes_nothing():
    optimizer = NeuroPlastic(parameters())
    take_steps(optimizer, 0, 1)
    before = copy.deepcopy(optimizer)
    sgd = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    take_steps(sgd, 0, 1)
    with pytest.raises(ValueError, match=r"parameter 0 lacks step, exp_avg, exp_avg_sq: it holds momentum_buffer"):
        optimizer.load_state_dict(sgd.state_dict())
    other = NeuroPlastic([torch.nn.Parameter(torch.zeros(5, 4)), torch.nn.Parameter(torch.zeros(7))])
    take_steps(other, 0, 1)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 1 has shape \(7,\) where \(3,\) is needed"):
        optimizer.load_state_dict(other.state_dict())
    three_passes = {**before.state_dict(), "state": copy.deepcopy(before.state_dict()["state"])}
    three_passes["state"][1]["trace"] = three_passes["state"][1].pop("sums")[:3]
    with pytest.raises(ValueError, match=r"parameter 1 holds a trace but no sums: .* NeuroPlastic of three passes"):
        optimizer.load_state_dict(three_passes)
    invalid = before.state_dict()
    invalid["param_groups"][0]["trace_decay"] = 2
    with pytest.raises(ValueError, match=r"trace_decay .* got 2 in group 0 of the state to load"):
        optimizer.load_state_dict(invalid)
    assert_same(optimizer, before)


FORGED = {
    "negative second moment": ("exp_avg_sq", lambda value: value - 1),
    "infinite second moment": ("exp_avg_sq", lambda value: value / 0),
    "NaN first moment": ("exp_avg", lambda value: value * float("nan")),
    "negative steps": ("step", lambda value: -value),
    "NaN steps": ("step", lambda value: value * float("nan")),
}


@pytest.mark.parametrize(("name", "forge"), FORGED.values(), ids=FORGED)
def test_numbers_that_no_training_leaves_are_refused_and_nothing_changes(name, forge):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = NeuroPlastic([p])
    p.grad = torch.ones(3)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    state["state"][0][name] = forge(state["state"][0][name])
    with pytest.raises(ValueError, match=f"{name} of parameter 0 holds .* values that are infinite, NaN or below 0"):
        optimizer.load_state_dict(state)
    for key, value in before["state"][0].items():
        assert torch.equal(optimizer.state[p][key], value)


def test_an_old_state_without_an_option_takes_the_optimizers_own():
    optimizer = NeuroPlastic(parameters(), strength=0.5)
    state = optimizer.state_dict()
    del state["param_groups"][0]["strength"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["strength"] == 0.5


def test_groups_have_their_own_options():
    first, second = parameters()
    optimizer = NeuroPlastic([{"params": [first], "base": "gradient", "lr": 0.1}], lr=0.01, base="momentum")
    optimizer.add_param_group({"params": [second], "strength": 0.0})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is False
    alone = [
        NeuroPlastic([torch.nn.Parameter(first.detach().clone())], lr=0.1, base="gradient"),
        NeuroPlastic([torch.nn.Parameter(second.detach().clone())], lr=0.01, base="momentum", strength=0.0),
    ]
    gradients = [torch.randn_like(p) for p in (first, second)]
    for group, single, gradient in zip(optimizer.param_groups, alone, gradients, strict=True):
        group["params"][0].grad = gradient
        single.param_groups[0]["params"][0].grad = gradient.clone()
        single.step()
    optimizer.step()
    for group, single in zip(optimizer.param_groups, alone, strict=True):
        assert torch.equal(group["params"][0], single.param_groups[0]["params"][0])


def test_named_parameters_are_taken():
    optimizer = NeuroPlastic(torch.nn.Linear(2, 2).named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_a_scheduler_sets_the_learning_rate():
    optimizer, plain = NeuroPlastic(parameters(), lr=0.1), NeuroPlastic(parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for number in range(3):
        take_steps(optimizer, number, number + 1)
        scheduler.step()
        take_steps(plain, number, number + 1)
        plain.param_groups[0]["lr"] *= 0.5
    assert_same(optimizer, plain)


def test_one_cycle_schedules_the_betas():
    optimizer = NeuroPlastic(parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    take_steps(optimizer, 0, 2)
    assert optimizer.param_groups[0]["betas"][0] == 0.95


def test_the_learning_rate_may_be_a_tensor():
    floats, tensors = NeuroPlastic(parameters(), lr=0.125), NeuroPlastic(parameters(), lr=torch.tensor(0.125))
    for each in (floats, tensors):
        take_steps(each, 0, 3)
    assert_same(floats, tensors)


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = NeuroPlastic([p])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert not torch.equal(p, torch.ones(3))
    assert NeuroPlastic([torch.nn.Parameter(torch.ones(1))]).step() is None


def test_parameters_without_gradient_are_left_alone():
    with_gradient, without = parameters()
    optimizer = NeuroPlastic([with_gradient, without])
    with_gradient.grad = torch.ones_like(with_gradient)
    before = without.detach().clone()
    optimizer.step()
    assert torch.equal(without, before)
    assert without not in optimizer.state


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()], ids=str)
def test_empty_and_single_element_parameters(shape):
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    optimizer = NeuroPlastic([p], lr=0.1, strength=0.0)
    optimizer.step()
    assert p.shape == shape
    torch.testing.assert_close(p.detach(), torch.full(shape, 0.9))
    assert optimizer.state[p]["step"] == 1


def test_a_shared_parameter_is_one_parameter():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = NeuroPlastic(model.parameters(), lr=0.01)
    model(torch.randn(2, 4)).square().sum().backward()
    optimizer.step()
    assert model[1].weight is model[0].weight
    assert optimizer.state[model[0].weight]["step"] == 1


def test_dtypes_and_layouts_may_be_mixed():
    mixed = [
        torch.nn.Parameter(torch.randn(4, 6).to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ]
    mixed.append(torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)))
    mixed.append(torch.nn.Parameter(torch.randn(6, 4).t()))
    optimizer = NeuroPlastic(mixed, lr=0.01)
    take_steps(optimizer, 0, 2)
    alone = [NeuroPlastic([torch.nn.Parameter(p.detach().clone())], lr=0.01) for p in mixed]
    for p, single in zip(mixed, alone, strict=True):
        q = single.param_groups[0]["params"][0]
        single.load_state_dict({**single.state_dict(), "state": {0: copy.deepcopy(optimizer.state[p])}})
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        single.step()
    optimizer.step()
    for p, single in zip(mixed, alone, strict=True):
        assert torch.equal(p, single.param_groups[0]["params"][0])
        assert optimizer.state[p]["exp_avg"].stride() == p.stride()


def test_a_step_of_no_length_moves_nothing_and_leaves_no_history():
    """Sharded training takes such a step, with gradients of zero, to make the optimizer build its state."""
    optimizer, adamw = NeuroPlastic(parameters(), lr=0.0, weight_decay=0.1), torch.optim.AdamW(parameters(), lr=0.0)
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    for each in (optimizer, adamw):
        for p in each.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        each.step()
    assert all(torch.equal(p, q) for p, q in zip(optimizer.param_groups[0]["params"], before, strict=True))
    for each in (optimizer, adamw):
        each.param_groups[0].update(lr=0.01, weight_decay=0.1)
        take_steps(each, 0, 1)
    for p, q in zip(optimizer.param_groups[0]["params"], adamw.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("base", BASES)
def test_a_parameter_that_was_frozen_goes_on_where_it_stopped(base):
    """Its state and sums wait, as those of a layer that LayerDrop leaves out."""
    optimizer, twin = NeuroPlastic(parameters(), base=base), NeuroPlastic(parameters(), base=base)
    for each in (optimizer, twin):
        take_steps(each, 0, 2)
    first, second = optimizer.param_groups[0]["params"]
    kept = {name: value.clone() for name, value in optimizer.state[first].items()}
    first.grad = None
    second.grad = torch.ones_like(second)
    optimizer.step()
    assert all(torch.equal(value, kept[name]) for name, value in optimizer.state[first].items())
    for each in (optimizer, twin):
        take_steps(each, 3, 4)
    assert torch.equal(first, twin.param_groups[0]["params"][0])


def test_complex_and_integer_parameters_are_refused_and_the_group_with_them():
    optimizer = NeuroPlastic(parameters())
    with pytest.raises(ValueError, match=r"parameter 1 of group 1 is torch.complex64: .* float32"):
        optimizer.add_param_group({"params": [torch.zeros(1), torch.zeros(1, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_sparse_gradients_are_refused(max_grad_norm):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = NeuroPlastic(embedding.parameters(), max_grad_norm=max_grad_norm)
    embedding.weight.grad = torch.ones(4, 2)
    optimizer.step()
    before = embedding.weight.clone()
    embedding.weight.grad = None
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"sparse_coo gradients, got one of shape \(4, 2\); use dense"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)
