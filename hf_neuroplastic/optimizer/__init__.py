"""The optimizer: steps that are scaled by a plasticity coefficient."""

from .neuroplastic import NeuroPlastic

__all__ = ["NeuroPlastic"]
