"""The cases that the installed torch keeps for its own optimizers, on NeuroPlastic."""

import copy
import io
import itertools

import pytest
import torch

from hf_neuroplastic import NeuroPlastic

pytest.importorskip("expecttest", reason="torch's own cases need it")
cases = pytest.importorskip("torch.testing._internal.common_optimizers")

FOREIGN = {"amsgrad", "capturable", "nesterov", "dampening", "differentiable", "foreach", "fused", "momentum"}


def accepted(inputs):
    """Cases of options that NeuroPlastic has."""
    return [each for each in inputs if not FOREIGN & each.kwargs.keys()]


ADAMW = accepted(cases.optim_inputs_func_adamw("cpu", torch.float32))
SGD = accepted(cases.optim_inputs_func_sgd("cpu", torch.float32))
ERRORS = [
    each
    for each in cases.optim_error_inputs_func_adamw("cpu", torch.float32)
    if not FOREIGN & each.optimizer_error_input.kwargs.keys()
]


def named(inputs):
    return {"argvalues": inputs, "ids": [each.desc.replace(" ", "_") for each in inputs]}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 2))


def trained(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(16, 6, generator=generator)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("case", **named(ADAMW))
def test_without_plasticity_adamws_cases_give_adamws_weights(case):
    first, second = network(), network()
    expected = trained(first, torch.optim.AdamW(first.parameters(), foreach=False, **case.kwargs), 10)
    kwargs = {"weight_decay": 1e-2, **case.kwargs}  # AdamW's default
    found = trained(second, NeuroPlastic(second.parameters(), strength=0.0, **kwargs), 10)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", **named(SGD))
def test_without_plasticity_sgds_cases_give_sgds_weights(case):
    first, second = network(), network()
    expected = trained(first, torch.optim.SGD(first.parameters(), foreach=False, momentum=0.9, **case.kwargs), 10)
    optimizer = NeuroPlastic(second.parameters(), base="momentum", strength=0.0, betas=(0.9, 0.99), **case.kwargs)
    found = trained(second, optimizer, 10)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ERRORS, ids=[each.optimizer_error_input.desc.replace(" ", "_") for each in ERRORS])
def test_torchs_error_cases_are_errors(case):
    given = case.optimizer_error_input
    params = [torch.nn.Parameter(torch.zeros(2, 2))] if given.params is None else given.params
    kind = ValueError if case.error_type is UserWarning else case.error_type  # a repeated parameter is an error here
    with pytest.raises(kind):
        NeuroPlastic(params, **given.kwargs)


@pytest.mark.parametrize("base", ["adamw", "momentum", "gradient"])
@pytest.mark.parametrize("case", **named(ADAMW))
def test_state_dict_copy_and_file_go_on_alike(case, base):
    model = network()
    kwargs = {"lr": 1e-3, **case.kwargs, "base": base}
    optimizer = NeuroPlastic(model.parameters(), **kwargs)
    trained(model, optimizer, 3)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    outcomes = []
    for state in (optimizer.state_dict(), torch.load(buffer, weights_only=True), copy.deepcopy(optimizer.state_dict())):
        twin = copy.deepcopy(model)
        other = NeuroPlastic(twin.parameters(), **kwargs)
        other.load_state_dict(state)
        outcomes.append(trained(twin, other, 3, start=3))
    expected = trained(model, optimizer, 3, start=3)
    for found in outcomes:
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("case", **named(ADAMW))
def test_parameters_without_gradients_and_groups_of_their_own_rates(case):
    model = network()
    kwargs = {name: value for name, value in case.kwargs.items() if name != "lr"}
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": [("w", model[2].weight), ("b", model[2].bias)]}]
    with pytest.raises(ValueError, match="with/without names"):
        NeuroPlastic(groups, **kwargs)
    groups = [{"params": list(model[0].parameters()), "lr": 0.0}, {"params": list(model[2].parameters())}]
    optimizer = NeuroPlastic(groups, **kwargs)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()  # nothing has a gradient
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert not optimizer.state
    trained(model, optimizer, 2)
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]


def test_hooks_run_around_a_step_in_torchs_order():
    model, order = network(), []
    optimizer = NeuroPlastic(model.parameters(), lr=1e-3)
    optimizer.register_step_pre_hook(lambda *_: order.append("pre"))
    optimizer.register_step_post_hook(lambda *_: order.append("post"))
    optimizer.register_state_dict_pre_hook(lambda *_: order.append("state pre"))
    optimizer.register_state_dict_post_hook(lambda *_: order.append("state post"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: order.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda *_: order.append("load post"))
    trained(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert order == ["pre", "post", "state pre", "state post", "load pre", "load post"]


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=8),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
}


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_set_the_rate_of_the_step(make, tensor):
    first, second = network(), network()

    def rate():
        return torch.tensor(1e-3) if tensor else 1e-3

    pairs = [
        (first, torch.optim.AdamW(first.parameters(), lr=rate(), weight_decay=0, foreach=False)),
        (second, NeuroPlastic(second.parameters(), lr=rate(), strength=0.0)),
    ]
    for model, optimizer in pairs:
        scheduler = make(optimizer)
        for step in range(5):
            trained(model, optimizer, 1, start=step)
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dtype", "base"), itertools.product([torch.float32, torch.float64], ["adamw", "momentum"]))
def test_a_closure_is_called_once_with_gradients_and_its_loss_returned(dtype, base):
    model = network().to(dtype)
    optimizer = NeuroPlastic(model.parameters(), lr=1e-3, base=base)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6, dtype=dtype)).square().mean()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
