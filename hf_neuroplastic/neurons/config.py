"""The configuration of DropIn: a frozen dataclass that refuses a wrong setting on construction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checks import (
    check_bool,
    check_choice,
    check_int,
    check_layers,
    check_number,
    check_point,
    check_recurrent,
    check_scale_range,
)
from .schedules import Cosine, OneOff, Schedule, check_schedule, schedule_from_dict

CRITERIA = ("contribution", "dormant", "gradient", "utility", "random")
INITS = ("normal", "fan_in", "layer", "split")
OUTGOING = ("pair", "zero", "keep")
BACKENDS = ("auto", "reference", "fused")


@dataclass(frozen=True)
class DropInConfig:
    """What DropIn watches, when it acts, and how. Steps are optimizer steps.

    Args:
        layers: which feed-forward layers to patch: None for all, or layer indices, exact names, or regular expressions
            (matched anywhere in a site's name), alone or in a sequence.
        recurrent: torch.nn.GRUs to take in as layers, {path of the GRU: path of the torch.nn.Linear that takes its output, or
            its last state}: modules do not show where an output goes. The units of a GRU's last layer can be replaced, not
            grown or pruned.
        criterion: how a neuron's usefulness is scored; the lowest scores go first.
            "contribution" mean|z| * mean|dz| (DropIn); "dormant" mean|z| (ReDo, arXiv 2302.12902); "gradient" mean|dz|
            (GraMa, arXiv 2505.24061); "utility" mean|z| * sum|w_out| (continual backprop, Nature 2024); "random" (a control).
        threshold: neurons that score at or below it are replaced; `math.inf` replaces the lowest `max_fraction` each time.
        relative: divide scores by the mean score of their layer, which makes `threshold` comparable across architectures.
        statistics_decay: decay per observed step of the moving averages of the statistics; 0 keeps the last step's only.
        interval: steps between two replacement events.
        start, stop: replacement happens from step `start` on and before step `stop`. An int counts steps, a float in [0, 1]
            is a share of the whole training; `stop=None` never stops. Late replacements have no time left to learn.
        maturity: neurons younger than this many steps are left alone.
        max_fraction: at most this share of a layer's active neurons is replaced per event, rounded up to a whole neuron, or to
            a pair.
        max_neuron_age: neurons older than this, and at least `maturity`, are replaced whatever their score; None for never.
        cooldown: steps for which a layer is left alone after neurons were replaced in it.
        init: incoming weights of a new neuron: "normal" N(0, init_std), bias 0; "fan_in" the variance of torch.nn.Linear's
            default, bias 0; "layer" the mean and deviation of the layer's own useful rows; "split" a copy of the strongest
            neuron, whose outgoing weights the two then share.
        init_std: standard deviation for init="normal".
        outgoing: outgoing weights of a replaced neuron. The old neuron's mean contribution goes into the next bias, so that the
            output does not jump, but for "keep". "pair": neurons are replaced two by two, with the same incoming weights and
            opposite outgoing ones (those of a neuron of at least median score, and their negative), so the two cancel and
            learn at full speed from their first step (arXiv 1905.07777); under a dropout between the layers, which draws for
            each apart, they cancel on average. Where only a part of a layer learns, as "zero".
            "zero": silent. Nothing reaches the incoming weights of a silent neuron until its outgoing weights have grown, so
            many are replaced again before: in examples/studies/churn.py, most. "keep": the old neuron's. init="split" shares
            a strong neuron's instead of "pair" and "zero".
        synaptic_lr: rate of synaptic scaling, applied every step; 0 switches it off.
        homeostatic_target: the mean|z| that scaling drives each neuron to, or "layer" for the layer's own mean (the error is
            then relative).
        scale_range: smallest and largest factor that scaling may apply to a neuron in all.
        extra_neurons: a Schedule: how many neurons more (less, if negative) than at the start each selected layer should have
            active, in the course of training. Whole numbers count neurons, floats are shares of the layer's neurons at the
            start. The model gets the slots in reserve for the schedule when DropIn patches the model, which must be before
            the optimizer has taken a step. Every `interval` steps, and at the last step, slots are activated (by `init`,
            with zero outgoing weights) or the weakest mature neurons go into reserve.
        freeze_existing: only neurons that DropIn made learn; the gradients of the others' weights and of the layers' outgoing
            bias are set to zero. Weight decay would move them all the same: an optimizer that decays these weights is
            refused, under Trainer before its first step, in a plain loop by the first DropIn.step. All else of the model is
            left to the caller, see `only_new_neurons`.
        young_plasticity, old_plasticity: factors on NeuroPlastic's steps for the weights and bias of a neuron: what a neuron
            that DropIn has just made starts with, and what it ends with. The neurons the model came with are old. 0 freezes
            all but weight decay; 1 and 1 leave the optimizer alone.
        consolidation: steps of age over which the factor goes from one to the other, in a straight line.
        observe_every: take statistics in every k-th step only.
        backend: "auto" takes the Triton kernels on CUDA devices and PyTorch elsewhere; "reference" or "fused" takes that form
            or raises when it is first needed.
        seed: key of the counter-based random numbers.

    Raises:
        TypeError, ValueError: naming the argument, what was got, and what is allowed.
    """

    layers: int | str | Sequence[int | str] | None = None
    recurrent: Mapping[str, str] | None = None
    criterion: str = "contribution"
    threshold: float = 0.1
    relative: bool = True
    statistics_decay: float = 0.99
    interval: int = 100
    start: int | float = 0
    stop: int | float | None = 0.75
    maturity: int = 100
    max_fraction: float = 0.01
    max_neuron_age: int | None = None
    cooldown: int = 0
    init: str = "layer"
    init_std: float = 0.01
    outgoing: str = "pair"
    synaptic_lr: float = 0.0
    homeostatic_target: float | str = "layer"
    scale_range: tuple[float, float] = (0.1, 2.0)
    extra_neurons: Schedule | None = None
    freeze_existing: bool = False
    young_plasticity: float = 1.0
    old_plasticity: float = 1.0
    consolidation: int = 1000
    observe_every: int = 1
    backend: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_recurrent(self.recurrent)
        check_choice("criterion", self.criterion, CRITERIA)
        check_choice("init", self.init, INITS)
        check_choice("outgoing", self.outgoing, OUTGOING)
        check_choice("backend", self.backend, BACKENDS)
        check_bool("relative", self.relative)
        check_bool("freeze_existing", self.freeze_existing)
        check_schedule("extra_neurons", self.extra_neurons)
        check_number("threshold", self.threshold, 0.0, math.inf)
        check_number("statistics_decay", self.statistics_decay, 0.0, 1.0, high_open=True)
        check_number("max_fraction", self.max_fraction, 0.0, 1.0)
        check_number("init_std", self.init_std, 0.0, math.inf, high_open=True)
        check_number("synaptic_lr", self.synaptic_lr, 0.0, 1.0)
        for name in ("young_plasticity", "old_plasticity"):
            check_number(name, getattr(self, name), 0.0, math.inf, high_open=True)
        for name in ("interval", "consolidation", "observe_every"):
            check_int(name, getattr(self, name), 1)
        for name in ("maturity", "cooldown"):
            check_int(name, getattr(self, name), 0)
        check_int("seed", self.seed, 0, 2**63 - 1)
        if self.max_neuron_age is not None:
            check_int("max_neuron_age", self.max_neuron_age, max(1, self.maturity))
        check_point("start", self.start)
        if self.stop is not None:
            check_point("stop", self.stop)
            if type(self.start) is type(self.stop) and self.start > self.stop:
                raise ValueError(f"start must not lie after stop, got start={self.start!r} and stop={self.stop!r}")
        if isinstance(self.homeostatic_target, str):
            check_choice("homeostatic_target", self.homeostatic_target, ("layer",), "or a number above 0")
        else:
            check_number("homeostatic_target", self.homeostatic_target, 0.0, math.inf, low_open=True, high_open=True)
        check_scale_range(self.scale_range)
        # Sequences become tuples: a frozen object should not change through a list the caller still holds.
        object.__setattr__(self, "scale_range", tuple(float(x) for x in self.scale_range))
        if self.layers is not None and not isinstance(self.layers, (int, str)):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.recurrent is not None:
            object.__setattr__(self, "recurrent", dict(self.recurrent))

    @property
    def pairs(self) -> bool:
        """Whether neurons are replaced two by two; a split is heard at once without a partner."""
        return self.outgoing == "pair" and self.init != "split"

    @property
    def changes_neurons(self) -> bool:
        """Whether neurons may ever be replaced, grown or pruned."""
        return self.max_fraction > 0 or self.extra_neurons is not None

    @property
    def scales_steps(self) -> bool:
        """Whether the size of the optimizer's steps depends on the neuron."""
        return (self.young_plasticity, self.old_plasticity) != (1.0, 1.0)

    @property
    def acts(self) -> bool:
        """Whether anything but watching is ever done."""
        return self.changes_neurons or self.scales_steps or self.synaptic_lr > 0 or self.freeze_existing

    @classmethod
    def original(cls, **changes: Any) -> DropInConfig:
        """The neuron layer DropIn began with: absolute contribution threshold .01, every step, no averaging, maximum age
        1000, fresh N(0, .01) incoming weights with bias 0, outgoing weights kept, scaling by .01 toward activity .5.

        Its thresholds suit a small network trained from scratch; in a pretrained model gradients are far smaller, and the
        relative criteria of the default configuration are the ones to use.
        """
        settings: dict[str, Any] = {
            "threshold": 0.01,
            "relative": False,
            "statistics_decay": 0.0,
            "interval": 1,
            "stop": None,
            "maturity": 0,
            "max_fraction": 1.0,
            "max_neuron_age": 1000,
            "init": "normal",
            "init_std": 0.01,
            "outgoing": "keep",
            "synaptic_lr": 0.01,
            "homeostatic_target": 0.5,
            "scale_range": (0.1, 2.0),
        }
        return cls(**(settings | changes))

    @classmethod
    def dropin(cls, neurons: int, *, at: float = 0.0, **changes: Any) -> DropInConfig:
        """Artificial neurogenesis (arXiv 2603.24343): `neurons` are added to each selected layer at progress `at`."""
        check_int("neurons", neurons, 1)
        settings: dict[str, Any] = {
            "extra_neurons": OneOff(at, 0, neurons),
            "max_fraction": 0.0,
            "interval": 10,
            "stop": None,
        }
        return cls(**(settings | changes))

    @classmethod
    def adapter(cls, neurons: int, **changes: Any) -> DropInConfig:
        """New neurons as a parallel adapter (arXiv 2110.04366): `neurons` are added to each selected layer at the start, and
        they alone learn; `only_new_neurons(model)` before, and an optimizer without weight decay, hold all else. What grew
        can be kept apart by `save_neurons`."""
        return cls.dropin(neurons, **{"freeze_existing": True, **changes})

    @classmethod
    def plasticity(cls, neurons: int, *, prune: tuple[float, float] = (0.5, 0.9), **changes: Any) -> DropInConfig:
        """Growth followed by pruning (arXiv 2603.24343): `neurons` are added to each selected layer at the start, and as many
        of the weakest taken away again between the two `prune` points in training, so that the width ends where it began."""
        check_int("neurons", neurons, 1)
        course = OneOff(0.0, 0, neurons) + Cosine(*prune, 0, -neurons)
        settings: dict[str, Any] = {
            "extra_neurons": course,
            "max_fraction": 0.0,
            "interval": 10,
            "maturity": 0,
            "stop": None,
        }
        return cls(**(settings | changes))

    @classmethod
    def redo(cls, **changes: Any) -> DropInConfig:
        """Recycling dormant neurons (ReDo, arXiv 2302.12902): every 1000 steps, all neurons of at most .025 of their layer's
        mean activity, with fresh incoming and zero outgoing weights. Averages the activity where ReDo takes one batch."""
        settings: dict[str, Any] = {
            "criterion": "dormant",
            "threshold": 0.025,
            "interval": 1000,
            "maturity": 0,
            "max_fraction": 1.0,
            "init": "fan_in",
            "outgoing": "zero",
            "stop": None,
        }
        return cls(**(settings | changes))

    @classmethod
    def continual_backprop(cls, rate: float = 1e-4, *, interval: int = 100, **changes: Any) -> DropInConfig:
        """Continual backprop (Dohare et al., Nature 2024): a share `rate` per step of the neurons, the mature ones of lowest
        utility, is replaced whatever their score; here as `rate * interval` every `interval` steps, at least one neuron."""
        check_number("rate", rate, 0.0, 1.0)
        check_int("interval", interval, 1)
        settings: dict[str, Any] = {
            "criterion": "utility",
            "threshold": math.inf,
            "relative": False,
            "interval": interval,
            "maturity": 100,
            "max_fraction": min(1.0, rate * interval),
            "init": "fan_in",
            "outgoing": "zero",
            "stop": None,
        }
        return cls(**(settings | changes))

    @classmethod
    def compress(cls, target: float, *, between: tuple[float, float] = (0.1, 0.7), **changes: Any) -> DropInConfig:
        """Structured pruning while training: the share of active neurons falls to `target` between two points in training;
        `compact(model)` then takes the slots out."""
        check_number("target", target, 0.0, 1.0, low_open=True)
        course = Cosine(*between, 0.0, target - 1.0)
        settings: dict[str, Any] = {
            "extra_neurons": course,
            "max_fraction": 0.0,
            "interval": 10,
            "maturity": 0,
            "stop": None,
        }
        return cls(**(settings | changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, infinity as the string "inf"; `from_dict` is the inverse."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DropInConfig:
        """The configuration `to_dict` described.

        Raises:
            ValueError: a key that is no field.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown DropInConfig fields {unknown}; allowed are {known}")
        settings: dict[str, Any] = {
            name: schedule_from_dict(value) if isinstance(value, Mapping) and name != "recurrent" else value
            for name, value in values.items()
        }
        settings |= {name: math.inf for name, value in settings.items() if value == "inf"}
        return cls(**settings)


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, tuple):
        return list(value)
    return "inf" if value == math.inf else value
