"""Plasticity of neurons: sites, observation, decisions, operations."""

from .config import DropInConfig
from .dropin import DropIn, unpatch
from .operate.adapters import AdapterBase, only_new_neurons
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
    "only_new_neurons",
    "reserve",
    "unpatch",
]
