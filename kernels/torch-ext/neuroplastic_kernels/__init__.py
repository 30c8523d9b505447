"""Operations for plasticity during fine-tuning; each has a PyTorch reference and room for a fused form."""

from . import layers
from .dispatch import BACKENDS, ffn_activation, neuron_reinit, plasticity_step, select, synaptic_scale

__all__ = ["BACKENDS", "ffn_activation", "layers", "neuron_reinit", "plasticity_step", "select", "synaptic_scale"]
