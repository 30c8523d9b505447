"""Operations for plasticity during fine-tuning: each a PyTorch reference, most with a fused form of the same signature."""

from .common.philox import uniform
from .dispatch import (
    BACKENDS,
    ffn_activation,
    gradient_squares,
    neuron_reinit,
    plasticity_step,
    select,
    synaptic_scale,
)
from .ffn_activation import neuron_sums
from .ffn_activation.reference import activation_name, record_neuron_sums
from .neuron_reinit.neurons import Fill, Incoming, Init, NeuronTensors, StateSlice
from .plasticity_step import eight_bit
from .plasticity_step.formulas import Hyperparameters, NeuronFactor
from .plasticity_step.measure import measure
from .plasticity_step.reference import is_flat

__all__ = [
    "BACKENDS",
    "Fill",
    "Hyperparameters",
    "Incoming",
    "Init",
    "NeuronFactor",
    "NeuronTensors",
    "StateSlice",
    "activation_name",
    "eight_bit",
    "ffn_activation",
    "gradient_squares",
    "is_flat",
    "measure",
    "neuron_reinit",
    "neuron_sums",
    "plasticity_step",
    "record_neuron_sums",
    "select",
    "synaptic_scale",
    "uniform",
]
