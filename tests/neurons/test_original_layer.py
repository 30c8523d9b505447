"""DropInConfig.original() on Linear-ReLU-Linear is the neuron layer DropIn began with, step by step.

The layer's formulas, in NumPy: z = relu(x (W s) + b); activity = mean|z|, gradient = mean|dz|, contribution = their product,
age + 1; a neuron dies if contribution <= .01 or age > max age, and is reborn with W ~ N(0, .01), b = 0, s = 1, age = 0; the
others follow s <- clip(s (1 + .01 (.5 - activity)), .1, 2).
"""

import numpy as np
import pytest
import torch
from tiny import tiny_mlp

from hf_neuroplastic import DropIn, DropInConfig
from neuroplastic_kernels.common.philox import normal

STEPS, BATCH, LR = 40, 16, 0.002


class OriginalLayer:
    """The formulas above for relu(x (W s) + b) V + c under the loss sum(y^2), trained by gradient descent on W s."""

    def __init__(self, model, max_age):
        up, _, down = model
        self.W = up.weight.detach().double().numpy().copy()  # [N, D]; the effective weights are W * s
        self.b, self.V, self.c = (t.detach().double().numpy().copy() for t in (up.bias, down.weight, down.bias))
        self.s, self.age, self.max_age = np.ones(len(self.b)), np.zeros(len(self.b), dtype=int), max_age

    def step(self, x, number):
        h = x @ (self.W * self.s[:, None]).T + self.b
        z = np.maximum(h, 0.0)
        dy = 2.0 * (z @ self.V.T + self.c)
        dz = dy @ self.V
        dh = dz * (h > 0)
        dV, dc, dWs, db = dy.T @ z, dy.sum(0), dh.T @ x, dh.sum(0)
        self.W -= LR * dWs / self.s[:, None]  # descends in the effective weights W s
        self.b -= LR * db
        self.V -= LR * dV
        self.c -= LR * dc

        activity, gradient = np.abs(z).mean(0), np.abs(dz).mean(0)
        self.age += 1
        dead = (activity * gradient <= 0.01) | (self.age > self.max_age)
        for i in np.flatnonzero(dead):
            index = torch.arange(i * x.shape[1], (i + 1) * x.shape[1])
            self.W[i] = 0.01 * normal(0, index, number - 1, 0, 0).double().numpy()
            self.b[i], self.s[i], self.age[i] = 0.0, 1.0, 0
        alive = ~dead
        self.s[alive] = np.clip(self.s[alive] * (1.0 + 0.01 * (0.5 - activity[alive])), 0.1, 2.0)
        return np.flatnonzero(dead).tolist()


@pytest.mark.parametrize("max_age", [1000, 7])
def test_the_configuration_reproduces_the_formulas(max_age):
    torch.manual_seed(3)
    model = tiny_mlp().double()
    dropin = DropIn(model, DropInConfig.original(max_neuron_age=max_age))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    original = OriginalLayer(model, max_age)
    site, statistics = dropin.sites[0], dropin.statistics[0]
    deaths = 0
    for number in range(1, STEPS + 1):
        x = torch.randn(BATCH, 6, dtype=torch.float64)
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = int(dropin.replaced[0])
        dropin.step(optimizer)
        dead = original.step(x.numpy(), number)
        deaths += len(dead)
        assert int(dropin.replaced[0]) - before == len(dead)
        assert statistics.age.tolist() == original.age.tolist()
        np.testing.assert_allclose(statistics.scale, original.s, rtol=2e-5)
        np.testing.assert_allclose(site.up.weight.detach(), original.W * original.s[:, None], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(site.up.bias.detach(), original.b, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(site.down.weight.detach(), original.V, rtol=1e-4, atol=1e-6)
    assert 0 < deaths < STEPS * site.width  # neurons died, and not all of them at every step
