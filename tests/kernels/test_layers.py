"""The layer of the kernel project stands in for a stock feed-forward layer, loaded as the `kernels` package loads it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Config, Wav2Vec2FeedForward

import neuroplastic_kernels
from neuroplastic_kernels.ffn_activation.reference import ACTIVATIONS
from neuroplastic_kernels.layers import FusedFeedForward, activation_name

CONFIG = {"hidden_size": 6, "intermediate_size": 10, "hidden_dropout": 0.0, "activation_dropout": 0.0}


def _outputs(layer, forward):
    x = torch.randn(2, 5, 6, requires_grad=True)
    parameters = list(layer.parameters())
    torch.manual_seed(1)
    y = forward(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu", "mish"]
)
def test_forward_and_gradients_are_the_stock_ones(activation):
    layer = Wav2Vec2FeedForward(Wav2Vec2Config(**CONFIG, hidden_act=activation))
    torch.manual_seed(0)
    expected = _outputs(layer, layer)
    torch.manual_seed(0)
    found = _outputs(layer, lambda x: FusedFeedForward.forward(layer, x))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


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


def test_dropout_is_active_in_training_only():
    layer = Wav2Vec2FeedForward(Wav2Vec2Config(**{**CONFIG, "activation_dropout": 0.5}))
    x = torch.randn(2, 5, 6)
    assert torch.equal(FusedFeedForward.forward(layer.eval(), x), layer(x))
    layer.train()
    assert not torch.equal(FusedFeedForward.forward(layer, x), FusedFeedForward.forward(layer, x))


@pytest.fixture
def kernels():
    """The PyPI package of that name. Without it, the folder of this repository answers to the name as an empty package."""
    package = pytest.importorskip("kernels")
    if package.__file__ is None:
        pytest.skip("the package `kernels` is not installed")
    return package


@pytest.fixture
def kernel_folder(tmp_path):
    """The package as kernel-builder lays it out: its own operator namespace and its metadata added."""
    folder = tmp_path / "neuroplastic-kernels"
    shutil.copytree(Path(neuroplastic_kernels.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "_ops.py").write_text(
        'def add_op_namespace_prefix(name):\n    return f"_neuroplastic_kernels_built::{name}"\n'
    )
    metadata = {
        "id": "_neuroplastic_kernels_built", "name": "neuroplastic-kernels", "version": 1, "license": "Apache-2.0",
        "backend": {"type": "cpu"}, "python-depends": [],
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_loads_as_a_local_kernel_beside_the_installed_package(kernels, kernel_folder):
    loaded = kernels.get_local_kernel(kernel_folder)
    assert loaded is not neuroplastic_kernels
    h = torch.randn(3, 5)
    torch.testing.assert_close(loaded.ffn_activation(h, None), neuroplastic_kernels.ffn_activation(h, None))


def test_kernelize_accepts_the_layer(kernels, kernel_folder):
    model = tiny_model("wav2vec2")
    batch = tiny_batch("wav2vec2")
    expected = model(**batch).logits
    layers = [module for module in model.modules() if isinstance(module, Wav2Vec2FeedForward)]
    stock = [layer.forward for layer in layers]
    repository = kernels.LocalLayerRepository(kernel_folder, layer_name="FusedFeedForward")
    kernels.replace_kernel_forward_from_hub(Wav2Vec2FeedForward, "FusedFeedForward")
    try:
        with kernels.use_kernel_mapping({"FusedFeedForward": {"cpu": repository}}):
            model = kernels.kernelize(model, mode=kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE, device="cpu")
    finally:
        del Wav2Vec2FeedForward.kernel_layer_name
    assert layers
    assert all(layer.forward.__func__ is not old.__func__ for layer, old in zip(layers, stock, strict=True))
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-6)
