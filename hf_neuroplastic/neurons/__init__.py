"""Plasticity of neurons: sites, observation, decisions, operations."""

from .config import DropInConfig
from .dropin import DropIn, unpatch
from .operate.adapter_base import AdapterBase, only_new_neurons
from .operate.adapter_optimizer import new_neuron_optimizer
from .operate.growth import grow
from .operate.resize import compact, reserve
from .schedules import Constant, Cosine, OneOff

__all__ = [
    "AdapterBase",
    "Constant",
    "Cosine",
    "DropIn",
    "DropInConfig",
    "OneOff",
    "compact",
    "grow",
    "new_neuron_optimizer",
    "only_new_neurons",
    "reserve",
    "unpatch",
]
