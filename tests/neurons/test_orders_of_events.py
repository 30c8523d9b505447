"""Whatever happens in whatever order: outputs are finite, Parameters the same objects, flags those of the weights."""

import copy

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic, compact, reserve
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.sites import inert_slots

CONFIGS = {
    "replace": DropInConfig(interval=2, maturity=1, max_fraction=0.3, threshold=float("inf"), stop=None),
    "split": DropInConfig(interval=2, maturity=1, max_fraction=0.3, threshold=float("inf"), stop=None, init="split"),
    "scale": DropInConfig(interval=3, maturity=0, threshold=0.5, stop=None, synaptic_lr=0.01),
    "grow": DropInConfig.dropin(3, at=0.2, interval=1),
    "prune": DropInConfig.compress(0.5, between=(0.1, 0.8), interval=1, maturity=0),
    "both": DropInConfig.plasticity(3, prune=(0.3, 0.9), interval=1, maturity=0),
    "young": DropInConfig(interval=2, maturity=1, threshold=float("inf"), stop=None, old_plasticity=0.5),
}
STEPS = 12


def block(width):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))


class Net(nn.Module):
    def __init__(self, widths=(6, 5)):
        super().__init__()
        self.first, self.second, self.head = block(widths[0]), block(widths[1]), nn.Linear(4, 2)

    def forward(self, x):
        x = x + self.first(x)
        return self.head(x + self.second(x))

    @property
    def widths(self):
        return self.first[0].out_features, self.second[0].out_features


def inputs(seed, count=8):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


class Events(RuleBasedStateMachine):
    @initialize(config=st.sampled_from(sorted(CONFIGS)), kind=st.sampled_from(["neuroplastic", "adamw", "two", "asgd"]))
    def begin(self, config, kind):
        torch.manual_seed(0)
        self.config = CONFIGS[config]
        self.kind = "neuroplastic" if config == "young" else kind
        self.model, self.saved, self.seed = Net(), None, 0
        self.patch()

    def make_optimizer(self):
        tensors = list(self.model.parameters())
        if self.kind == "two":
            matrices = [p for p in tensors if p.ndim == 2]
            return [NeuroPlastic(matrices, lr=1e-2), torch.optim.AdamW([p for p in tensors if p.ndim == 1], lr=1e-2)]
        kinds = {"neuroplastic": NeuroPlastic, "adamw": torch.optim.AdamW, "asgd": torch.optim.ASGD}
        return [kinds[self.kind](tensors, lr=1e-2)]

    def patch(self, state=None):
        self.dropin = DropIn(self.model, self.config, total_steps=STEPS, state=state)
        self.optimizer = self.make_optimizer()
        self.parameters = dict(self.model.named_parameters())

    @property
    def patched(self):
        return self.dropin.patched

    @rule(train=st.booleans(), bad=st.sampled_from([None, None, None, float("nan"), float("inf")]))
    def step(self, train, bad):
        self.seed += 1
        x = inputs(self.seed)
        self.model.train(train)(x).square().mean().backward()
        if bad is not None:  # as after an overflow: the step is left out
            self.model.zero_grad()
            self.dropin.discard()
            return
        for optimizer in self.optimizer:
            optimizer.step()
        self.model.zero_grad()
        if self.patched:
            self.dropin.step(self.optimizer)

    @rule()
    def evaluate(self):
        x = inputs(0)
        with torch.no_grad():
            assert torch.equal(self.model.eval()(x), copy.deepcopy(self.model)(x))
        self.model.train()

    @precondition(lambda self: self.patched)
    @rule()
    def save(self):
        learns = self.model.first[0].weight.requires_grad
        self.saved = copy.deepcopy((self.model.state_dict(), self.dropin.state_dict(), self.model.widths, learns))
        self.saved_sites = [site.name for site in self.dropin.sites]

    @precondition(lambda self: self.saved is not None and self.saved[2] == self.model.widths)
    @rule()
    def roll_back_the_weights(self):
        self.model.load_state_dict(self.saved[0])

    @precondition(lambda self: self.saved is not None)
    @rule()
    def resume(self):
        weights, state, widths, learns = self.saved
        self.dropin.unpatch()
        self.model = Net() if len(self.saved_sites) == 2 else Net(widths)
        self.model.first.requires_grad_("first.0" in self.saved_sites)
        self.patch(state)
        self.model.first.requires_grad_(learns)
        assert self.model.widths == widths
        self.model.load_state_dict(weights)
        for site, group in self.dropin.state_dict()["sites"].items():
            assert all(torch.equal(value, state["sites"][site][name]) for name, value in group.items())

    @precondition(lambda self: self.patched)
    @rule()
    def unpatch(self):
        self.dropin.unpatch()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())
        assert not any(p._backward_hooks for p in self.model.parameters())

    @precondition(lambda self: not self.patched)
    @rule()
    def patch_again(self):
        self.patch()

    @precondition(lambda self: not self.patched)
    @rule(count=st.integers(0, 2))
    def widen(self, count):
        before = self.model(inputs(1)).detach()
        reserve(self.model, count, optimizer=self.optimizer)
        torch.testing.assert_close(self.model(inputs(1)).detach(), before)

    @precondition(lambda self: not self.patched)
    @rule()
    def narrow(self):
        before = self.model(inputs(1)).detach()
        compact(self.model, optimizer=self.optimizer)
        torch.testing.assert_close(self.model(inputs(1)).detach(), before)

    @rule(learns=st.booleans())
    def freeze(self, learns):
        self.model.first.requires_grad_(learns)

    @precondition(lambda self: self.patched and self.config.init != "split")
    @rule(data=st.data())
    def replace_by_hand(self, data):
        masks = [
            torch.tensor(data.draw(st.lists(st.booleans(), min_size=site.width, max_size=site.width)))
            for site in self.dropin.sites
        ]
        known = self.dropin.watched[-1]
        x = inputs(3)
        hidden = x + self.model.first(x)
        z = known.site.activation(known.site.up(hidden)).detach()
        before = known.site.down(z).detach()
        outgoing, mean = known.site.down.weight.detach().clone(), known.statistics.mean_output.clone()
        gone = masks[-1] & known.statistics.active
        self.dropin.apply([Decision(Action.REPLACE, mask) for mask in masks], self.optimizer)
        after = known.site.down(known.site.activation(known.site.up(hidden))).detach()
        jump = (z - mean)[:, gone] @ outgoing[:, gone].T if known.site.trainable else 0.0
        torch.testing.assert_close(after, before - jump, rtol=1e-4, atol=1e-5)

    @precondition(lambda self: self.patched)
    @rule(what=st.sampled_from(["mask", "number", "optimizer", "state", "second"]))
    def refused(self, what):
        weights = copy.deepcopy(self.model.state_dict())
        states = [copy.deepcopy(each.state_dict()) for each in self.optimizer]
        widths = [site.width for site in self.dropin.sites]
        good = [Decision(Action.REPLACE, torch.ones(width, dtype=torch.bool)) for width in widths]
        calls = {
            "mask": lambda: self.dropin.apply([*good[1:], Decision(Action.REPLACE, torch.ones(1))], self.optimizer),
            "number": lambda: self.dropin.apply(good[1:], self.optimizer),
            "optimizer": lambda: self.dropin.step(torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=1.0)),
            "state": lambda: self.dropin.load_state_dict({"sites": {}}),
            "second": lambda: DropIn(self.model),
        }
        if what == "number" and len(good) < 2:
            return
        try:
            calls[what]()
        except (ValueError, TypeError, RuntimeError):
            pass
        else:
            raise AssertionError(f"{what} was not refused")
        assert all(torch.equal(value, weights[name]) for name, value in self.model.state_dict().items())
        for optimizer, state in zip(self.optimizer, states, strict=True):
            for key, entry in optimizer.state_dict()["state"].items():
                assert all(
                    torch.equal(torch.as_tensor(v), torch.as_tensor(state["state"][key][n])) for n, v in entry.items()
                )

    @invariant()
    def outputs_are_finite(self):
        if hasattr(self, "model"):
            with torch.no_grad():
                assert self.model(inputs(2)).isfinite().all()

    @invariant()
    def parameters_are_the_same_objects(self):
        if hasattr(self, "model"):
            assert all(p is self.parameters[name] for name, p in self.model.named_parameters())

    @invariant()
    def a_stock_model_of_the_widths_loads_the_weights(self):
        if hasattr(self, "model"):
            stock = Net(self.model.widths)
            stock.load_state_dict(self.model.state_dict())
            with torch.no_grad():
                assert torch.equal(stock(inputs(2)), self.model(inputs(2)))

    @invariant()
    def flags_agree_with_the_weights(self):
        if hasattr(self, "dropin") and self.patched:
            for known in self.dropin.watched:
                assert torch.equal(known.statistics.active, ~inert_slots(known.site))


Events.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestEvents = Events.TestCase
