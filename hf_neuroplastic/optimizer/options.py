"""The options of NeuroPlastic: their allowed values, the defaults that depend on the base, and whose neuron factors are."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor

from neuroplastic_kernels import NeuronFactor

FLATTENED = (
    "many tensors in one, or parts of them, the means that NeuroPlastic takes over single tensors would be others"
)
INSTEAD = (
    "train data-parallel (DDP) or with fully_shard (FSDP2), or with strength=0 and neither max_grad_norm nor skip_nonfinite, "
    "which is the bare base"
)
LONG = 4096  # elements; no bias is longer in most models
logger = logging.getLogger(__name__)

# What an option of None becomes, by base.
OWN: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "activity": "rms", "statistics": "previous", "decoupled_weight_decay": True},
    "momentum": {"betas": (0.9, 0.99), "activity": "rms", "statistics": "previous", "decoupled_weight_decay": False},
    "gradient": {"betas": (0.9, 0.99), "activity": "trace", "statistics": "exact", "decoupled_weight_decay": False},
}


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_at_least_zero(value: Any) -> bool:
    return is_number(value) and value >= 0


def is_decay(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def is_sequence_of(length: int, allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Sequence) and len(value) == length and all(map(allowed, value))


def is_learning_rate(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and (value.is_meta or is_at_least_zero(value.item()))
    return is_at_least_zero(value)


def is_norm(value: Any) -> bool:
    return value is None or value == math.inf or (is_number(value) and value > 0)


def is_range(value: Any) -> bool:
    return is_sequence_of(2, is_at_least_zero)(value) and value[0] <= value[1]


def is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (is_learning_rate, "a finite number >= 0, or a tensor of one such number"),
    "base": (is_one_of(*OWN), f"one of {', '.join(map(repr, OWN))}"),
    "betas": (is_sequence_of(2, is_decay), "two numbers >= 0 and < 1, or None for the base's own"),
    "activity": (is_one_of("rms", "trace"), "'rms', 'trace', or None for the base's own"),
    "statistics": (is_one_of("previous", "exact"), "'previous', 'exact', or None for the base's own"),
    "trace_decay": (is_decay, "a number >= 0 and < 1"),
    "signal_weights": (
        is_sequence_of(3, is_at_least_zero),
        "three numbers >= 0: of the activity, the gradient, the memory",
    ),
    "alpha_range": (is_range, "two numbers 0 <= lo <= hi"),
    "plasticity_scale": (is_at_least_zero, "a number >= 0"),
    "strength": (is_at_least_zero, "a number >= 0; 0 switches plasticity off"),
    "warmup_steps": (is_at_least_zero, "a number of steps >= 0; 0 for no warm-up"),
    "max_update_norm": (is_norm, "a number > 0, or None for no limit"),
    "target_rms": (is_at_least_zero, "a number >= 0"),
    "homeostatic_rate": (is_at_least_zero, "a number >= 0; 0 for none"),
    "eps": (lambda value: is_number(value) and value > 0, "a number > 0"),
    "weight_decay": (is_at_least_zero, "a number >= 0"),
    "decoupled_weight_decay": (is_bool, "True, False, or None for the base's own"),
    "maximize": (is_bool, "True or False"),
    "max_grad_norm": (is_norm, "a number > 0, or None for no clipping"),
    "skip_nonfinite": (is_bool, "True or False"),
    "stochastic_rounding": (is_bool, "True or False"),
    "seed": (is_seed, "a whole number >= 0 and < 2**63"),
    "state_bits": (lambda value: is_seed(value) and value in (8, 32), "8 or 32"),
}
NOT_OF_A_STEP = ("activity", "max_grad_norm", "seed", "state_bits")  # others are arguments of `plasticity_step`


def check_options(options: dict[str, Any], where: str) -> dict[str, Any]:
    """The options of one group, complete and checked.

    Options of None become the base's own, where it has one; an infinite norm becomes None, no limit. Keys without a rule are
    dropped. Raises ValueError naming the option, the value, what is allowed and `where` the value stood.
    """
    own = OWN.get(str(options["base"]), OWN["adamw"])
    options = {name: own.get(name) if options[name] is None else options[name] for name in RULES}
    for name, (allowed, rule) in RULES.items():
        if not allowed(options[name]):
            raise ValueError(f"{name} must be {rule}; got {options[name]!r} in {where}")
    for name in ("activity", "statistics"):
        if options["base"] == "gradient" and options[name] != own[name]:
            raise ValueError(
                f"{name} must be {own[name]!r} for base 'gradient', the paper's own step; got {options[name]!r} in {where}: "
                "leave the option out, or take base 'adamw' or 'momentum'"
            )
    return options | {name: None for name in ("max_update_norm", "max_grad_norm") if options[name] == math.inf}


def refuse_strangers(factors: Mapping[Any, Any], groups: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where neuron factors are of no parameter of these groups, or are none."""
    held = {param for group in groups for param in group["params"]}
    for param, factor in factors.items():
        shape = tuple(param.shape) if isinstance(param, Tensor) else param
        if param not in held:
            raise ValueError(
                f"neuron_factors has an entry for {shape!r}, which is no parameter of this optimizer: remove it, or add the "
                "parameter with add_param_group"
            )
        if not isinstance(factor, NeuronFactor) or not isinstance(factor.values, Tensor):
            raise ValueError(
                f"neuron_factors of the parameter of shape {shape} must be a NeuronFactor(values, dim) whose values are a "
                f"tensor; got {described(factor)}"
            )


def is_flattened(param: Tensor) -> bool:
    """Whether a parameter is a vector of torch's FSDP1, or the part of such a vector that was taken from one tensor."""
    return getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False)


def tell_long_vector(params: Sequence[Tensor]) -> None:
    """Warn of a long vector that stands alone, which may be a flattened one: an ordinary vector looks the same."""
    if len(params) == 1 and params[0].ndim == 1 and params[0].numel() >= LONG:
        logger.warning(
            "a group holds one vector of %d elements: if that is %s; %s", params[0].numel(), FLATTENED, INSTEAD
        )


def refuse_flattened(params: Sequence[Tensor], group: Mapping[str, Any]) -> None:
    """Raise TypeError where FSDP1 has flattened a parameter of a group whose steps need whole tensors."""
    if not is_elementwise(group) and any(map(is_flattened, params)):
        raise TypeError(
            f"NeuroPlastic was given a part of a vector of FSDP1 (FullyShardedDataParallel), which is {FLATTENED}; {INSTEAD}"
        )


def refuse_joined(group: Mapping[str, Any], given: "Given | None") -> None:
    """Raise TypeError where a group of tensors has become one vector that was none of them."""
    params = group["params"]
    if given is None or given.vector or len(params) != 1 or params[0].ndim != 1 or id(params[0]) in given.places:
        return
    if not is_elementwise(group):
        raise TypeError(
            f"a group of NeuroPlastic was given {len(given.places)} tensors and holds one vector of {params[0].numel()} "
            f"elements now, as DeepSpeed's ZeRO makes of them, which is {FLATTENED}; {INSTEAD}"
        )


@cache
def tell_idle() -> None:
    """Say once that a step found nothing to do."""
    logger.warning(
        "no parameter of NeuroPlastic has a gradient, and step() changes nothing: call it after backward(); where a model is "
        "wrapped (FSDP1), make the optimizer from the wrapped model's parameters"
    )


def is_elementwise(group: Mapping[str, Any]) -> bool:
    """Whether a step asks nothing of a tensor as a whole, so that any slices of tensors may be stepped."""
    return group["strength"] == 0 and group["max_grad_norm"] is None and not group["skip_nonfinite"]


class Given(NamedTuple):
    """The parameters of a group as they were given. places: their ids; vector: whether there is one, of one dimension."""

    places: frozenset[int]
    vector: bool

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> "Given":
        return cls(frozenset(map(id, params)), len(params) == 1 and params[0].ndim == 1)


def described(factor: Any) -> str:
    of = f" of a {type(factor.values).__name__}" if isinstance(factor, NeuronFactor) else ""
    return f"{type(factor).__name__}{of}"
