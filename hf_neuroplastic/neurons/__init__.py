"""Plasticity of neurons: what they are, what is known of them, who is to change, and the change itself."""

from .config import DropInConfig
from .dropin import DropIn, unpatch
from .operate.growth import grow
from .operate.resize import compact, reserve
from .schedules import Constant, Cosine, OneOff

__all__ = ["Constant", "Cosine", "DropIn", "DropInConfig", "OneOff", "compact", "grow", "reserve", "unpatch"]
