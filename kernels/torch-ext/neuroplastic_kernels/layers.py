"""Layers for `kernels.kernelize`: forward passes that take the place of a module's own and read everything from it."""

import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import ffn_activation

# Class names, since this package does not import transformers: torch.nn's, then those of transformers.activations.
ACTIVATION_NAMES = {
    "GELU": "gelu", "ReLU": "relu", "SiLU": "silu",
    "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "NewGELUActivation": "gelu_tanh", "FastGELUActivation": "gelu_tanh",
    "SiLUActivation": "silu", "QuickGELUActivation": "quick_gelu",
}  # fmt: skip


def activation_name(module: nn.Module) -> str | None:
    """The key under which `ffn_activation` knows the function of an activation module, or None if it does not."""
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    return ACTIVATION_NAMES.get(type(module).__name__)


class FusedFeedForward(nn.Module):
    """The feed-forward layer of wav2vec2, HuBERT, WavLM, UniSpeech and their kin, with bias, activation and dropout fused.

    Its parts are those of the module it is bound to. An activation that has no fused form runs as it is.
    """

    has_backward: bool = True
    can_torch_compile: bool = True

    intermediate_dense: nn.Linear
    intermediate_act_fn: nn.Module
    intermediate_dropout: nn.Dropout
    output_dense: nn.Linear
    output_dropout: nn.Dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        up, dropout = self.intermediate_dense, self.intermediate_dropout
        name = activation_name(self.intermediate_act_fn)
        if name is None:
            z = dropout(self.intermediate_act_fn(up(hidden_states)))
        else:
            h = F.linear(hidden_states, up.weight)
            z = ffn_activation(h, up.bias, activation=name, dropout=dropout.p, training=dropout.training)
        return self.output_dropout(self.output_dense(z))
