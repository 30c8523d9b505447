"""A stream of attacks and the arms that go through it: what a YAML file holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..recipe import Recipe, number, one_of, recipe_of, whole

OPTIMIZERS = ("adamw", "neuroplastic")
PLAIN = ("examples", "start_steps", "start_rate", "evaluate", "by", "apart")  # of which Stream has the defaults
EVENTS = {"interval": 20, "maturity": 20}
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "head": {"freeze": "all"},
    "first-layers": {"freeze": "first:2"},
    "replay": {"replay": 20},
    "l2": {"anchor": "l2", "strength": 0.1},
    "ewc": {"anchor": "ewc", "strength": 100.0},
    "lora": {"lora": 8, "freeze": "nothing"},
    "neurons": {"neurons": 32},
    "replace": {"dropin": dict(EVENTS)},
    "dropin": {"dropin": {"preset": "dropin", "neurons": 32}},
    "plasticity": {"dropin": {"preset": "plasticity", "neurons": 32}},
    "consolidation": {
        "dropin": {"old_plasticity": 0.3, "young_plasticity": 2.0, **EVENTS},
        "optimizers": ["neuroplastic"],
    },
}


@dataclass(frozen=True)
class Arm:
    """One way of going on when a new attack appears.

    Attributes:
        name: with the optimizer, such as "replay, adamw".
        trials: the recipes that are tried; the one that does best on dev speaks for the arm.
        replay: utterances of each class and earlier stage that are kept and trained on again.
        anchor: "l2" or "ewc" (Kirkpatrick et al. 2017, arXiv 1612.00796, with the importances of all stages added up): a
            penalty of `strength` / 2 times the sum of importance * (weight - weight before the stage)^2; "l2" has importance 1.
        neurons: neurons that each feed-forward layer gets for each attack, which alone learn, with the head.
    """

    name: str
    trials: tuple[Recipe, ...]
    replay: int = 0
    anchor: str = ""
    strength: float = 0.0
    neurons: int = 0


@dataclass(frozen=True)
class Stream:
    """The attacks in their order, and what all arms share.

    Attributes:
        start: attacks of the detector that all arms start from; none where the model is a detector already.
        stages: then one attack after another, or several at once.
        examples: utterances of each class to learn a new attack from. start_steps: of the first detector.
        evaluate: at most so many utterances of each attack, and four times as many bona fide ones, are scored.
        by: "attack": start and stages name attacks; "corpus": corpora, one after another, with all their attacks.
        apart: "speaker": training, dev and test parts share no speaker; "utterance": no utterance.
        seeds: of weights, choice of examples, and order.
    """

    start: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    arms: tuple[Arm, ...]
    examples: int = 32
    start_steps: int = 500
    start_rate: float = 1e-3
    evaluate: int = 100
    by: str = "attack"
    apart: str = "speaker"
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Recipe = field(default_factory=Recipe)


def is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def is_list_of(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(allowed, value))


RATE = number(0, 1, above=True)
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "start": (is_names, "an attack, or a list of attacks"),
    "stages": (is_list_of(lambda stage: bool(stage) and is_names(stage)), "a list of attacks, or of lists of attacks"),
    "examples": whole(2),
    "start_steps": whole(1),
    "start_rate": RATE,
    "evaluate": whole(8),
    "by": one_of("attack", "corpus"),
    "apart": one_of("speaker", "utterance"),
    "seeds": (is_list_of(whole(0)[0]), "a list of whole numbers of at least 0"),
    "rates": (is_list_of(RATE[0]), f"a list of learning rates, each {RATE[1]}"),
    "optimizers": (is_list_of(lambda name: name in OPTIMIZERS), f"a list out of {', '.join(OPTIMIZERS)}"),
    "arms": (
        lambda arms: is_list_of(lambda name: isinstance(name, str))(arms) or (isinstance(arms, dict) and bool(arms)),
        f"a list out of {', '.join(ARMS)}, or a mapping of a name to settings",
    ),
    "recipe": (lambda value: isinstance(value, dict), "a mapping of settings of a recipe"),
}
ARM_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "replay": whole(0),
    "anchor": one_of("l2", "ewc"),
    "strength": number(0, math.inf),
    "neurons": whole(1),
    "optimizers": RULES["optimizers"],
    "trials": (is_list_of(lambda trial: isinstance(trial, dict)), "a list of mappings of settings of a recipe"),
}
DEFAULTS: dict[str, Any] = {
    "start": [],
    "stages": [],
    "rates": [1e-4, 3e-4, 1e-3],
    "optimizers": list(OPTIMIZERS),
    "arms": list(ARMS),
    "seeds": [0, 1, 2],
    "recipe": {},
}


def stream_of(values: Mapping[str, Any]) -> Stream:
    """The stream that a mapping describes; settings that it leaves out are at their defaults, see `Stream` and `ARMS`.

    Besides the attributes: `rates`, the learning rates that every arm tries; `optimizers`, with each of which every arm goes;
    `arms`, names out of ARMS, or a mapping of name to settings of a recipe and of `Arm`, and `trials`, a list of settings in
    place of `rates`; `recipe`, settings that all arms share.

    Raises:
        ValueError: by name: an unknown setting or arm, a value out of range, arms with unequal numbers of trials.
    """
    unknown = sorted(set(values) - set(RULES))
    if unknown:
        raise ValueError(f"a stream has no {', '.join(unknown)}; its settings are {', '.join(RULES)}")
    given = DEFAULTS | dict(values)
    _check(given, RULES)
    start, *stages = (tuple([each] if isinstance(each, str) else each) for each in (given["start"], *given["stages"]))
    named, seeds = [attack for stage in (start, *stages) for attack in stage], given["seeds"]
    if len(set(named)) < len(named):
        raise ValueError(f"stages must name each attack once, those of start among them; got {named}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers; got {seeds}")
    _refuse_own(given["recipe"], "recipe")
    if "learning_rate" in given["recipe"]:
        raise ValueError("learning_rate of recipe would be overwritten: give the rates that every arm tries as rates")
    shared = {"steps": 100, **given["recipe"]}
    arms = tuple(_arms(given, shared))
    if len({len(arm.trials) for arm in arms}) > 1:
        told = ", ".join(f"{arm.name}: {len(arm.trials)}" for arm in arms)
        raise ValueError(f"every arm must have as many trials as the others, for a fair choice; got {told}")
    plain = {name: values[name] for name in PLAIN if name in values}
    recipe = recipe_of(shared | {"method": "adamw"})
    return Stream(start, tuple(stages), arms, seeds=tuple(seeds), recipe=recipe, **plain)


def _refuse_own(values: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for settings of a recipe that the stream itself decides."""
    for name, instead in {"method": "optimizers and arms", "seed": "seeds"}.items():
        if name in values:
            raise ValueError(f"{name} of {where} would be overwritten: a stream takes it from {instead}")


def _check(values: Mapping[str, Any], rules: Mapping[str, tuple[Callable[[Any], bool], str]], where: str = "") -> None:
    for name, (allowed, rule) in rules.items():
        if name in values and not allowed(values[name]):
            raise ValueError(f"{name}{where} must be {rule}; got {values[name]!r}")


def _arms(given: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterator[Arm]:
    asked = given["arms"] if isinstance(given["arms"], dict) else dict.fromkeys(given["arms"])
    for name, told in asked.items():
        if told is None and name not in ARMS:
            raise ValueError(
                f"there is no arm {name!r}; known are {', '.join(ARMS)}, others want settings of their own"
            )
        settings = dict(ARMS[name] if told is None else told)
        _check(settings, ARM_RULES, f" of arm {name!r}")
        for each in (settings, *settings.get("trials", ())):
            _refuse_own(each, f"arm {name!r}")
            if lost := sorted({"patience", "average"} & each.keys()):
                raise ValueError(f"{', '.join(lost)} of arm {name!r} would do nothing: a stage keeps its last weights")
        beside = {key: settings.pop(key) for key in tuple(ARM_RULES) if key in settings}
        if ("anchor" in beside) != bool(beside.get("strength")):
            raise ValueError(f"arm {name!r} must have anchor and strength, a number above 0, or neither; got {beside}")
        if "neurons" in beside and settings.keys() & {"lora", "dropin", "freeze"}:
            raise ValueError(f"neurons of arm {name!r} say what learns: leave out {', '.join(settings)}")
        trials = beside.pop("trials", [{"learning_rate": rate} for rate in given["rates"]])
        own = beside.pop("optimizers", given["optimizers"])
        for optimizer in (each for each in given["optimizers"] if each in own):
            method = optimizer + ("+dropin" if "dropin" in settings else "")
            recipes = tuple(recipe_of({**shared, **settings, **trial, "method": method}) for trial in trials)
            arm = Arm(f"{name}, {optimizer}", recipes, **beside)
            _require_holdable(arm)
            yield arm


def _require_holdable(arm: Arm) -> None:
    """Raises ValueError where an anchor would hold nothing, or weights of another shape."""
    grows = arm.neurons or any(one.method.endswith("+dropin") and one.dropin.extra_neurons for one in arm.trials)
    adapts = any(one.lora for one in arm.trials)
    if arm.neurons and adapts:
        raise ValueError(f"neurons of arm {arm.name!r} say what learns: leave out lora, of recipe or of the arm")
    if arm.anchor and (grows or adapts):
        raise ValueError(
            f"anchor of arm {arm.name!r} holds weights as they are, and the arm {'grows neurons' if grows else 'trains LoRA'}: "
            "leave out anchor and strength, or the other"
        )


def chosen_names(parts: Sequence[Sequence[str]]) -> list[str]:
    """Names of stages: their attacks joined."""
    return ["+".join(part) for part in parts]
