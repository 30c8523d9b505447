"""Reborn neurons carry initial optimizer state; every other element keeps its bits."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model
from torch import nn
from transformers import Adafactor

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.operate.optimizer_state import MAGNITUDES, state_slices
from hf_neuroplastic.neurons.operate.optimizers import Optimizers
from hf_neuroplastic.neurons.sites import NeuronSlice

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "hf_adafactor": lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9),
    "neuroplastic": lambda p: NeuroPlastic(p, lr=1e-2),
    "neuroplastic_gradient": lambda p: NeuroPlastic(p, lr=1e-2, base="gradient"),
}
CHOSEN = [1, 4, 7]


def _mask(width=10):
    mask = torch.zeros(width, dtype=torch.bool)
    mask[CHOSEN] = True
    return mask


def _trained(make, steps=3):
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(stop=None, threshold=0.0))
    optimizer = make(model.parameters())
    for _ in range(steps):
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    return model, dropin, optimizer


def _snapshot(optimizer, model):
    return {
        (name, key): value.clone()
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_reborn_slices_are_initial_and_the_rest_is_untouched(make):
    model, dropin, optimizer = _trained(make)
    before = _snapshot(optimizer, model)
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    after = _snapshot(optimizer, model)
    neuron_dims = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    touched = 0
    for (name, key), value in after.items():
        old = before[name, key]
        dim = neuron_dims.get(name)
        belongs = dim is not None and value.ndim > 0 and value.numel() > 1
        if belongs and value.shape != dict(model.named_parameters())[name].shape:  # factored: [10, 1], [1, 10] or [10]
            belongs = value.numel() == 10
            dim = value.shape.index(10) if belongs else dim
        if not belongs:
            assert torch.equal(value, old), (name, key)
            continue
        touched += 1
        kept = [i for i in range(10) if i not in CHOSEN]
        assert torch.equal(value.index_select(dim, torch.tensor(kept)), old.index_select(dim, torch.tensor(kept)))
        reborn = value.index_select(dim, torch.tensor(CHOSEN))
        mean = old.index_select(dim, torch.tensor(kept)).mean(dim, keepdim=True).expand_as(reborn)
        torch.testing.assert_close(reborn, mean if key in MAGNITUDES else torch.zeros_like(reborn))
    assert touched or isinstance(optimizer, torch.optim.SGD)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_first_step_of_a_reborn_neuron_is_no_longer_than_its_neighbours(make):
    """A zeroed second moment late in training would make it 3.2 times the learning rate."""
    model, dropin, optimizer = _trained(make, steps=200)
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    before = model[2].weight.detach().clone()
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    moved = (model[2].weight.detach() - before).abs()
    assert moved[:, CHOSEN].max() <= 2.0 * moved.max(dim=1).values.max()
    assert moved[:, CHOSEN].max() <= 3e-2 or isinstance(optimizer, torch.optim.SGD)


class Lookahead(torch.optim.Optimizer):
    """As wrappers are written that hold an optimizer and slow weights of their own."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.optimizer, self.param_groups = base, base.param_groups

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow_buffer", p.detach().clone())
                slow.lerp_(p.detach(), 0.5)
                p.detach().copy_(slow)
        return loss


def accelerated(params):
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare_optimizer(torch.optim.AdamW(params, lr=1e-2))


class Both(torch.optim.Optimizer):
    """Several optimizers in one, as some Trainers are given."""

    def __init__(self, params):
        self.optimizers = _halves(list(params))
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]
        self.state, self.defaults = {}, {}

    def step(self, closure=None):
        for one in self.optimizers:
            one.step()


WRAPPERS = {
    "several in one": Both,
    "accelerate": accelerated,
    "lookahead": lambda p: Lookahead(torch.optim.AdamW(p, lr=1e-2)),
    "lookahead in accelerate": lambda p: Lookahead(accelerated(p).optimizer),
    "Muon for matrices": lambda p: _muon(list(p)),
    "a list": lambda p: _halves(list(p)),
    "a list of wrappers": lambda p: [Lookahead(each) for each in _halves(list(p))],
}


def _halves(params):
    return [torch.optim.AdamW(params[:1], lr=1e-2), torch.optim.AdamW(params[1:], lr=1e-2)]


def _muon(params):
    matrices = [p for p in params if p.ndim == 2]
    return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW([p for p in params if p.ndim < 2], lr=1e-2)]


def _inside(optimizer):
    parts = optimizer if isinstance(optimizer, list) else [optimizer]
    return [one for part in parts for one in getattr(part, "optimizers", [getattr(part, "optimizer", part)])]


def _steps(model, dropin, optimizer, count):
    parts = optimizer if isinstance(optimizer, list) else [optimizer]
    for _ in range(count):
        model(torch.randn(8, 6)).square().sum().backward()
        for part in parts:
            part.step()
        model.zero_grad()
        dropin.step(optimizer)


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_state_is_reset_through_wrappers_and_in_every_optimizer(make):
    model = tiny_mlp()
    dropin, optimizer = DropIn(model, DropInConfig(stop=None)), make(model.parameters())
    _steps(model, dropin, optimizer, 3)
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    for tensor, dim in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
        (state,) = [one.state[tensor] for one in _inside(optimizer) if one.state.get(tensor)]
        moments = state["exp_avg" if "exp_avg" in state else "momentum_buffer"].movedim(dim, 0)
        assert not moments[CHOSEN].any()
        assert moments[[0, 2, 3]].all()
        for part in optimizer if isinstance(optimizer, list) else [optimizer]:
            slow = part.state.get(tensor, {}).get("slow_buffer")
            if slow is not None:
                assert torch.equal(slow, tensor)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"torch.optim.Optimizer, wrap one, or be a list of these, got float"):
        Optimizers(1.0)
    assert Optimizers(None).found == []


COPYING = {
    "asgd": (lambda p: torch.optim.ASGD(p, lr=1e-3), "ax"),
    "unknown name": (lambda p: Copying(p, lr=1e-3), "best"),
}


class Copying(torch.optim.SGD):
    """State of a name that nobody knows, which averages the weights."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            average = self.state[p].setdefault("best", p.detach().clone())
            average.lerp_(p.detach(), 0.1)


@pytest.mark.parametrize(("make", "name"), COPYING.values(), ids=COPYING)
def test_state_that_averages_the_weights_follows_the_new_ones(make, name):
    model, dropin, optimizer = _trained(make, steps=20)
    bias, average = model[2].bias.detach().clone(), optimizer.state[model[2].bias][name].clone()
    kept = optimizer.state[model[0].weight][name].clone()
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    mask = _mask()
    assert torch.equal(optimizer.state[model[0].weight][name][mask], model[0].weight[mask])
    assert torch.equal(optimizer.state[model[0].weight][name][~mask], kept[~mask])
    assert torch.equal(optimizer.state[model[2].weight][name][:, mask], model[2].weight[:, mask])
    shift = model[2].bias.detach() - bias
    assert shift.any()
    torch.testing.assert_close(optimizer.state[model[2].bias][name] - average, shift)


def test_magnitudes_of_unknown_names_begin_at_the_survivors_mean():
    model, dropin, optimizer = _trained(OPTIMIZERS["sgd"])
    state = optimizer.state[model[0].weight]
    state["hessian"], state["gradients"] = torch.rand(10, 6) + 0.1, torch.randn(10, 6) * 1e-3
    kept = state["hessian"][~_mask()].clone()
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    torch.testing.assert_close(state["hessian"][_mask()], kept.mean(0).expand(3, 6))
    assert not state["gradients"][_mask()].any()


def test_state_of_a_name_that_only_looks_like_a_copy_begins_at_zero():
    model, dropin, optimizer = _trained(OPTIMIZERS["sgd"])
    optimizer.state[model[0].weight]["z"] = torch.randn(10, 6)  # FTRL's sum of gradients, not schedule-free's weights
    dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    assert not optimizer.state[model[0].weight]["z"][_mask()].any()


class Subclass(torch.Tensor):
    """As torchao and FSDP keep state."""


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (torch.zeros(10, 6, dtype=torch.uint8), r"'m' of AdamW is torch.uint8, quantised.*floating-point"),
        (torch.zeros(4, 15), r"'m' of AdamW has shape \(4, 15\) for a parameter of shape \(10, 6\)"),
        (torch.zeros(10, 6).as_subclass(Subclass), r"'m' of AdamW is a Subclass, quantised"),
        ([torch.zeros(10, 10), torch.zeros(6, 6)], r"'m' of AdamW is a list of tensors that mix all neurons"),
    ],
)
def test_state_that_cannot_be_reset_is_refused_before_anything_changes(state, words):
    model, dropin, optimizer = _trained(OPTIMIZERS["adamw"])
    optimizer.state[model[0].weight]["m"] = state
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=words):
        dropin.apply([Decision(Action.REPLACE, _mask())], optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Kept(torch.optim.SGD):
    """Slow weights in an attribute of its own."""

    def __init__(self, params):
        super().__init__(params, lr=1e-2)
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.LBFGS(p, max_iter=1), "LBFGS keeps one state for all parameters"),
        (Kept, "'slow' of Kept is kept beside its state"),
        (lambda p: NeuroPlastic(p, state_bits=8), "8-bit optimizer state"),
    ],
)
def test_optimizers_that_cannot_be_reset_are_refused_at_the_first_step(make, words):
    model = tiny_mlp()
    dropin, optimizer = DropIn(model, DropInConfig(stop=None)), make(model.parameters())
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step(lambda: torch.zeros(()))
    with pytest.raises(TypeError, match=words):
        dropin.step(optimizer)
    assert dropin.step_count == 0


def test_who_changes_no_neuron_may_use_any_optimizer():
    model = tiny_mlp()
    dropin, optimizer = DropIn(model, DropInConfig(max_fraction=0.0)), torch.optim.LBFGS(model.parameters(), max_iter=1)
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step(lambda: torch.zeros(()))
    dropin.step(optimizer)
    assert dropin.step_count == 1


def test_a_model_that_is_frozen_for_a_while_goes_on():
    model = tiny_mlp()
    dropin, optimizer = DropIn(model, DropInConfig(stop=None)), torch.optim.AdamW(model.parameters())
    for learns in (True, False, True):
        model[0].requires_grad_(learns)
        model[2].weight.requires_grad_(learns)
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        dropin.step(optimizer)
    assert dropin.step_count == 3


def test_flattened_parameters_are_named():
    model = tiny_mlp()
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    wrapper = SimpleNamespace(optimizer=SimpleNamespace(optimizer=torch.optim.AdamW([flat])))
    with pytest.raises(ValueError, match=r"holds no parameter of the watched layers.*DeepSpeed's ZeRO"):
        DropIn(model, DropInConfig(stop=None)).step(wrapper)


def test_copies_in_another_precision_are_named():
    model = tiny_mlp()
    copies = torch.optim.AdamW([nn.Parameter(p.detach().double()) for p in model.parameters()])
    with pytest.raises(ValueError, match=r"holds copies in another precision, as DeepSpeed's bf16"):
        DropIn(model, DropInConfig(stop=None)).step(copies)


def test_layers_and_biases_that_no_optimizer_holds_stay_with_a_word(caplog):
    model = nn.ModuleDict({"one": tiny_mlp(), "two": tiny_mlp(), "three": tiny_mlp()})
    kept = [*model["one"].parameters(), model["two"][0].bias]
    optimizer = NeuroPlastic([p for p in model.parameters() if not any(p is k for k in kept)], lr=1e-2)
    dropin = DropIn(model, DropInConfig(interval=1, maturity=0, max_fraction=0.2, threshold=float("inf"), stop=None))
    before = [p.detach().clone() for p in kept]
    for _ in range(3):
        sum(part(torch.randn(8, 6)).square().sum() for part in model.values()).backward()
        optimizer.step()
        model.zero_grad()
        dropin.step(optimizer)
    assert [int(count) for count in dropin.replaced] == [0, 6, 6]
    assert all(torch.equal(p, old) for p, old in zip(kept, before, strict=True))
    assert caplog.text.count("neurons of one.0 stay as they are") == 1
    assert caplog.text.count("normalization of two.0 stay as they are") == 1


def test_a_layer_that_is_unfrozen_later_is_named_once(caplog):
    model = nn.ModuleDict({"one": tiny_mlp(), "two": tiny_mlp()})
    model["one"].requires_grad_(False)
    dropin, optimizer = DropIn(model, DropInConfig(stop=None)), NeuroPlastic(model.parameters(), lr=1e-2)
    for step in range(3):
        model["one"].requires_grad_(step > 0)
        sum(part(torch.randn(8, 6)).square().sum() for part in model.values()).backward()
        optimizer.step()
        dropin.step(optimizer)
    assert caplog.text.count("one.0 was frozen when DropIn was made") == 1


def test_parameters_without_state_or_optimizer_have_no_slices():
    parameter = nn.Parameter(torch.zeros(3, 2))
    assert state_slices(Optimizers(None), NeuronSlice(parameter)) == ()
    assert state_slices(Optimizers(torch.optim.Adam([parameter])), NeuronSlice(parameter)) == ()
    assert state_slices(Optimizers(torch.optim.Adam([parameter])), None) == ()


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_a_whole_model_trains_on_after_surgery(family):
    model = tiny_model(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dropin = DropIn(model, DropInConfig(interval=2, maturity=1, max_fraction=0.2, threshold=float("inf"), stop=None))
    for seed in range(6):
        model(**tiny_batch(family, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    assert [int(count) for count in dropin.replaced] == [18, 18]  # ceil(.2 * 24) = 5, up to a pair, three times
    assert all(torch.isfinite(p).all() for p in model.parameters())
