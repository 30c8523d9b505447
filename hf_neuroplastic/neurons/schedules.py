"""Numbers that change in the course of training: small schedules that can be added.

A schedule maps progress, 0 at the first step and 1 at the last, to a number. Schedules are plain frozen values, so that a
configuration that holds them can be compared, saved and read back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checks import check_number

LARGEST_SHARE = 8.0  # a float beyond is a count of neurons, misspelt


@dataclass(frozen=True)
class Schedule:
    """What every schedule can do."""

    def __call__(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        raise TypeError(f"{type(self).__name__} is no schedule by itself; use one of {', '.join(SCHEDULES)}")

    def __add__(self, other: Schedule) -> Sum:
        return Sum(self, other)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `schedule_from_dict` is the inverse."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: value.to_dict() if isinstance(value, Schedule) else value for name, value in values.items()}
        return {"schedule": type(self).__name__, **plain}

    def neurons(self, progress: float, start: int) -> float:
        """The value in neurons: whole numbers count neurons, floats are shares of `start` neurons."""
        return self(progress) if self.counts() else start * self(progress)

    def most_neurons(self, start: int) -> float:
        """The largest value in neurons, looked up at 1001 points and where parts of the schedule begin and end."""
        return max(self.neurons(p, start) for p in (*(step / 1000 for step in range(1001)), *self.corners()))

    def values(self) -> tuple[float, ...]:
        """The numbers between which the schedule moves."""
        return ()

    def counts(self) -> bool:
        """Whether all values are whole numbers."""
        return all(isinstance(value, int) for value in self.values())

    def corners(self) -> tuple[float, ...]:
        """Progress values at which it changes its form."""
        return ()


@dataclass(frozen=True)
class Constant(Schedule):
    """Always `value`."""

    value: float

    def __post_init__(self) -> None:
        _check_values(value=self.value)

    def __call__(self, progress: float) -> float:
        return self.value

    def values(self) -> tuple[float, ...]:
        return (self.value,)


@dataclass(frozen=True)
class OneOff(Schedule):
    """`before`, and `after` from progress `at` on."""

    at: float
    before: float
    after: float

    def __post_init__(self) -> None:
        _check_progress("at", self.at)
        _check_values(before=self.before, after=self.after)

    def __call__(self, progress: float) -> float:
        return self.after if progress >= self.at else self.before

    def values(self) -> tuple[float, ...]:
        return (self.before, self.after)

    def corners(self) -> tuple[float, ...]:
        return (self.at,)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From `before` to `after` along half a cosine wave between progress `start` and `end`; constant outside."""

    start: float
    end: float
    before: float
    after: float

    def __post_init__(self) -> None:
        _check_progress("start", self.start)
        _check_progress("end", self.end)
        if self.start >= self.end:
            raise ValueError(f"start must lie before end, got start={self.start} and end={self.end}")
        _check_values(before=self.before, after=self.after)

    def __call__(self, progress: float) -> float:
        share = min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0)
        return self.before + (self.after - self.before) * 0.5 * (1.0 - math.cos(math.pi * share))

    def values(self) -> tuple[float, ...]:
        return (self.before, self.after)

    def corners(self) -> tuple[float, ...]:
        return (self.start, self.end)


@dataclass(frozen=True)
class Sum(Schedule):
    """The sum of two schedules."""

    first: Schedule
    second: Schedule

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            if not isinstance(part := getattr(self, name), Schedule):
                raise TypeError(f"{name} must be a Schedule, such as {', '.join(SCHEDULES)}, got {part!r}")

    def __call__(self, progress: float) -> float:
        return self.first(progress) + self.second(progress)

    def neurons(self, progress: float, start: int) -> float:
        return self.first.neurons(progress, start) + self.second.neurons(progress, start)

    def values(self) -> tuple[float, ...]:
        return self.first.values() + self.second.values()

    def corners(self) -> tuple[float, ...]:
        return self.first.corners() + self.second.corners()


SCHEDULES: dict[str, type[Schedule]] = {kind.__name__: kind for kind in (Constant, OneOff, Cosine, Sum)}


def schedule_from_dict(values: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_dict` described.

    Raises:
        ValueError: an unknown kind of schedule.
    """
    values = dict(values)
    kind = values.pop("schedule", None)
    if kind not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
    parts = {name: schedule_from_dict(part) if isinstance(part, Mapping) else part for name, part in values.items()}
    return SCHEDULES[kind](**parts)


def check_schedule(name: str, value: Any) -> None:
    """Raises TypeError unless `value`, the setting `name`, is a schedule or None; ValueError for too large a share."""
    if value is None:
        return
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a Schedule, such as {', '.join(SCHEDULES)}, or None, got {value!r}")
    for number in value.values():
        if isinstance(number, float) and not -1.0 <= number <= LARGEST_SHARE:
            raise ValueError(
                f"{name} counts neurons in ints; a float is a share of a layer's neurons and must lie in [-1, "
                f"{LARGEST_SHARE:g}], got {number}; write {round(number)} for neurons"
            )


def _check_progress(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share of training and must lie in [0, 1], got {value!r}")


def _check_values(**values: Any) -> None:
    for name, value in values.items():
        check_number(name, value, -math.inf, math.inf, low_open=True, high_open=True)
