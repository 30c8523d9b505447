"""An activation module is known by the function it computes."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from neuroplastic_kernels import activation_name
from neuroplastic_kernels.ffn_activation.reference import ACTIVATIONS


@pytest.mark.parametrize("name", sorted(ACT2FN))
def test_an_activation_is_recognised_only_if_it_is_the_same_function(name):
    try:
        module = ACT2FN[name]
    except ImportError as error:
        pytest.skip(str(error))
    found = activation_name(module)
    if found is not None:
        x = torch.linspace(-12.0, 12.0, 1001)
        torch.testing.assert_close(ACTIVATIONS[found](x), module(x), rtol=1e-5, atol=1e-6)


def test_torch_activations_are_recognised():
    assert activation_name(nn.GELU()) == "gelu"
    assert activation_name(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert activation_name(nn.ReLU()) == "relu"
    assert activation_name(nn.SiLU()) == "silu"
    assert activation_name(nn.Tanh()) is None
