"""What a setting may be. Every check raises an error that names the setting, what was got, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def check_choice(name: str, value: Any, allowed: Sequence[str], more: str = "") -> None:
    """`more`: what else is allowed, in words."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(
            f"{name} must be {'one of ' if len(allowed) > 1 else ''}{choices} {more}".rstrip() + f", got {value!r}"
        )


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_number(
    name: str, value: Any, low: float, high: float, *, low_open: bool = False, high_open: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    inside = (low < value if low_open else low <= value) and (value < high if high_open else value <= high)
    if not inside:  # NaN compares false and lands here too
        raise ValueError(
            f"{name} must lie in {'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}, got {value}"
        )


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < low or (high is not None and value > high):
        raise ValueError(
            f"{name} must be at least {low}{f' and at most {high}' if high is not None else ''}, got {value}"
        )


def check_point(name: str, value: Any) -> None:
    """A point in training: an int counts steps, a float is a share."""
    if isinstance(value, float):
        if not 0.0 <= value <= 1.0:
            raise ValueError(
                f"{name} as a float is a share of training and must lie in [0, 1], got {value}; "
                f"use an int to count optimizer steps"
            )
    else:
        check_int(name, value, 0)


def check_scale_range(value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"scale_range must be a pair (low, high), got {value!r}")
    for bound in value:
        check_number("scale_range", bound, 0.0, math.inf, low_open=True, high_open=True)
    if not value[0] <= 1.0 <= value[1]:
        raise ValueError(f"scale_range must contain 1, the factor every neuron starts with, got {tuple(value)}")


def check_layers(value: Any) -> None:
    entries = [value] if isinstance(value, (int, str)) else value
    if entries is None:
        return
    allowed = "None, a layer index, a name, a regular expression, or a sequence of these"
    if isinstance(entries, (bytes, Mapping)) or not isinstance(entries, Sequence):
        raise TypeError(f"layers must be {allowed}, got {value!r} of type {type(value).__name__}")
    if len(entries) == 0:
        raise ValueError(f"layers is empty, which selects nothing; it must be {allowed} (None selects every layer)")
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (int, str)):
            raise TypeError(f"layers must be {allowed}, got the entry {entry!r} of type {type(entry).__name__}")


def check_recurrent(value: Any) -> None:
    allowed = "None, or a dict {path of a torch.nn.GRU: path of the torch.nn.Linear that takes its output}"
    pairs = [] if value is None else value.items() if isinstance(value, Mapping) else [(value, None)]
    if not all(isinstance(path, str) for pair in pairs for path in pair):
        raise TypeError(f"recurrent must be {allowed}, got {value!r} of type {type(value).__name__}")
