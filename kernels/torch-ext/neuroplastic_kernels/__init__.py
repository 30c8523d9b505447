"""Operations for plasticity during fine-tuning: each a PyTorch reference, most with a fused form of the same signature."""

from .common.philox import uniform
from .common.shards import (
    Sums,
    add_over_shards,
    add_up,
    added_up_over,
    entries,
    in_turn,
    is_sharded,
    part_of,
    put,
    split_along,
    split_over,
)
from .dispatch import (
    BACKENDS,
    FUSED_DTYPES,
    ffn_activation,
    neuron_reinit,
    plasticity_step,
    plasticity_steps,
    select,
    synaptic_scale,
)
from .ffn_activation import neuron_sums
from .ffn_activation.reference import activation_name, record_neuron_sums
from .neuron_reinit.neurons import Fill, Incoming, Init, NeuronTensors, StateSlice
from .plasticity_step import eight_bit
from .plasticity_step.reference import SUMS, Hyperparameters, NeuronFactor
from .plasticity_step.sharded import aligned, settle
from .plasticity_step.storage import is_flat, state_dtype

__all__ = [
    "BACKENDS",
    "FUSED_DTYPES",
    "SUMS",
    "Fill",
    "Hyperparameters",
    "Incoming",
    "Init",
    "NeuronFactor",
    "NeuronTensors",
    "StateSlice",
    "Sums",
    "activation_name",
    "add_over_shards",
    "add_up",
    "added_up_over",
    "aligned",
    "eight_bit",
    "entries",
    "ffn_activation",
    "in_turn",
    "is_flat",
    "is_sharded",
    "neuron_reinit",
    "neuron_sums",
    "part_of",
    "plasticity_step",
    "plasticity_steps",
    "put",
    "record_neuron_sums",
    "select",
    "settle",
    "split_along",
    "split_over",
    "state_dtype",
    "synaptic_scale",
    "uniform",
]
