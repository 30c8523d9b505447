"""Augmentation of training audio: parts that distort a window, one after the other, each with a probability."""

from .parts import PARTS, Augmentation, augmentation

__all__ = ["PARTS", "Augmentation", "augmentation"]
