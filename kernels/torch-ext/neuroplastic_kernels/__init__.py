"""Operations for plasticity during fine-tuning; each has a PyTorch reference and room for a fused form."""

from . import layers
from .dispatch import (
    BACKENDS,
    ffn_activation,
    gradient_squares,
    neuron_reinit,
    plasticity_step,
    select,
    synaptic_scale,
)
from .reference.plasticity_formulas import NeuronFactor

__all__ = [
    "BACKENDS",
    "NeuronFactor",
    "ffn_activation",
    "gradient_squares",
    "layers",
    "neuron_reinit",
    "plasticity_step",
    "select",
    "synaptic_scale",
]
