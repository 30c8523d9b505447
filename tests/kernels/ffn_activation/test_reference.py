"""The op is bias, activation and dropout; its backward pass is theirs, and the neuron_sums come on the side."""

import pytest
import torch
import torch.nn.functional as F

from neuroplastic_kernels import ffn_activation
from neuroplastic_kernels.ffn_activation import reference as reference
from neuroplastic_kernels.ffn_activation.neuron_sums import ABS_OUTPUT, OUTPUT, ROWS, TOKENS

STOCK = {
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda h: h * torch.sigmoid(1.702 * h),
}


@pytest.mark.parametrize("activation", STOCK)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 7), (0, 4), (5, 2, 3, 33)])
def test_forward_and_gradients_are_the_stock_ones(activation, bias, shape):
    h = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    b = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [t for t in (h, b) if t is not None]
    neuron_sums = torch.zeros(ROWS, shape[-1])
    upstream = torch.randn(shape, dtype=torch.float64)
    found = ffn_activation(h, b, neuron_sums, activation=activation)
    expected = STOCK[activation](h if b is None else h + b)
    assert torch.equal(found, expected)
    for gradient, wanted in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert torch.equal(gradient, wanted)
    torch.testing.assert_close(
        neuron_sums[ABS_OUTPUT].double(), expected.detach().abs().reshape(-1, shape[-1]).sum(0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("activation", STOCK)
def test_gradcheck(activation):
    h = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, b: ffn_activation(h, b, torch.zeros(ROWS, 3), activation=activation), (h, b)
    )


def test_masked_tokens_are_not_counted_but_pass_gradients():
    h = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    neuron_sums = torch.zeros(ROWS, 3)
    ffn_activation(h, None, neuron_sums, token_mask=mask).sum().backward()
    assert neuron_sums[TOKENS].tolist() == [6.0] * 3
    torch.testing.assert_close(neuron_sums[ABS_OUTPUT], F.gelu(h).abs()[mask].sum(0))
    assert h.grad[~mask].any()


@pytest.mark.parametrize("neuron_dim", [-1, 1])
def test_tokens_may_be_summed_in_any_number_of_parts(neuron_dim, monkeypatch):
    z, dz = torch.randn(2, 7, 3, 5)
    mask = torch.rand(7, 3 if neuron_dim == -1 else 5) > 0.3
    whole = reference.sum_neurons(z, dz, mask, neuron_dim)
    selected = z.movedim(neuron_dim, -1)[mask]
    torch.testing.assert_close(whole[OUTPUT], selected.sum(0))
    assert whole[TOKENS].tolist() == [float(mask.sum())] * selected.shape[1]
    for size in (1, 2 * z[0].numel()):
        monkeypatch.setattr(reference, "PART", size)
        torch.testing.assert_close(reference.sum_neurons(z, dz, mask, neuron_dim), whole)


def test_moments_that_require_grad_get_the_sums_as_their_gradient():
    h, mask = torch.randn(2, 4, 3, requires_grad=True), torch.rand(2, 4) > 0.3
    neuron_sums, probe = torch.zeros(ROWS, 3), torch.ones(ROWS, 3, requires_grad=True)
    for target in (neuron_sums, probe):
        ffn_activation(h, None, target, token_mask=mask).square().sum().backward()
    assert torch.equal(probe.grad, neuron_sums)
    assert torch.equal(probe, torch.ones(ROWS, 3))


def test_dropout_falls_on_the_output_and_not_on_the_moments():
    h = torch.ones(1000, 2, requires_grad=True)
    neuron_sums = torch.zeros(ROWS, 2)
    torch.manual_seed(0)
    z = ffn_activation(h, None, neuron_sums, activation="relu", dropout=0.25)
    z.sum().backward()
    torch.manual_seed(0)
    assert torch.equal(z, F.dropout(torch.ones(1000, 2), 0.25))
    assert neuron_sums[ABS_OUTPUT].tolist() == [1000.0, 1000.0]
    assert torch.equal(ffn_activation(h, None, activation="relu", dropout=0.25, training=False), h)


ERRORS = [
    ({"activation": "swish2"}, ValueError, ["activation", "'swish2'", "'gelu'"]),
    ({"neuron_sums": torch.zeros(ROWS, 4)}, ValueError, ["neuron_sums", str((ROWS, 3)), str((ROWS, 4))]),
    ({"token_mask": torch.ones(3, dtype=torch.bool)}, ValueError, ["token_mask", "(2,)", "(3,)"]),
    ({"backend": "cuda"}, ValueError, ["backend", "'cuda'", "'reference'"]),
]


@pytest.mark.parametrize(("arguments", "error", "words"), ERRORS)
def test_errors(arguments, error, words):
    arguments = {"neuron_sums": torch.zeros(ROWS, 3), **arguments}
    with pytest.raises(error) as caught:
        ffn_activation(torch.zeros(2, 3), None, **arguments)
    for word in words:
        assert word in str(caught.value)
