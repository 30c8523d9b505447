"""A stream of attacks and the arms that go through it: what a YAML file holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipe import Recipe, recipe_of

OPTIMIZERS = ("adamw", "neuroplastic")
ANCHORS = ("", "l2", "ewc")
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
    recipe: Recipe = dataclasses.field(default_factory=Recipe)


CHOICES = {"by": ("attack", "corpus"), "apart": ("speaker", "utterance")}
WHOLE = {"examples": 2, "start_steps": 1, "evaluate": 8}
SETTINGS = ("start", "stages", *WHOLE, "start_rate", "by", "apart", "seeds", "rates", "optimizers", "arms", "recipe")


def stream_of(values: Mapping[str, Any]) -> Stream:
    """The stream that a mapping describes; settings that it leaves out are at their defaults, see `Stream` and `ARMS`.

    Besides the attributes: `rates`, the learning rates that every arm tries; `optimizers`, with each of which every arm goes;
    `arms`, names out of ARMS, or a mapping of name to settings of a recipe and of `Arm`, and `trials`, a list of settings in
    place of `rates`; `recipe`, settings that all arms share.

    Raises:
        ValueError: by name: an unknown setting or arm, a value out of range, arms with unequal numbers of trials.
    """
    unknown = sorted(set(values) - set(SETTINGS))
    if unknown:
        raise ValueError(f"a stream has no {', '.join(unknown)}; its settings are {', '.join(SETTINGS)}")
    stages = tuple((stage,) if isinstance(stage, str) else tuple(stage) for stage in values.get("stages", ()))
    start = values.get("start", ())
    start = (start,) if isinstance(start, str) else tuple(start)
    named = [attack for stage in (start, *stages) for attack in stage]
    if not stages or not all(stages) or len(set(named)) < len(named):
        raise ValueError(f"stages must be a list of attacks, each named once, in start or in one stage; got {named}")
    for name, lowest in WHOLE.items():
        if not isinstance(value := values.get(name, lowest), int) or value < lowest:
            raise ValueError(f"{name} must be a whole number of at least {lowest}; got {value!r}")
    for name, allowed in CHOICES.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {values[name]!r}")
    seeds = tuple(values.get("seeds", (0, 1, 2)))
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds must be different whole numbers; got {list(seeds)}")
    shared = {"steps": 100, "class_weights": "auto", "warmup_share": 0.1, **dict(values.get("recipe", {}))}
    recipe = recipe_of(shared | {"method": "adamw"})
    given: dict[str, Any] = {name: values[name] for name in (*WHOLE, *CHOICES, "start_rate") if name in values}
    arms = tuple(_arms(values, shared))
    if len({len(arm.trials) for arm in arms}) > 1:
        told = ", ".join(f"{arm.name}: {len(arm.trials)}" for arm in arms)
        raise ValueError(f"every arm must have as many trials as the others, for a fair choice; got {told}")
    return Stream(start, stages, arms, seeds=seeds, recipe=recipe, **given)


def _arms(values: Mapping[str, Any], shared: Mapping[str, Any]) -> list[Arm]:
    rates = [{"learning_rate": float(rate)} for rate in values.get("rates", (1e-4, 3e-4, 1e-3))]
    optimizers = tuple(values.get("optimizers", OPTIMIZERS))
    if not rates or not optimizers or not set(optimizers) <= set(OPTIMIZERS):
        raise ValueError(f"rates must be learning rates and optimizers out of {OPTIMIZERS}; got {rates}, {optimizers}")
    asked = values.get("arms", list(ARMS))
    asked = dict(asked) if isinstance(asked, Mapping) else {str(name): None for name in asked}
    arms = []
    for name, told in asked.items():
        if told is None and name not in ARMS:
            raise ValueError(
                f"there is no arm {name!r}; known are {', '.join(ARMS)}, others want settings of their own"
            )
        settings = dict(ARMS[name] if told is None else told)
        trials, own = settings.pop("trials", rates), settings.pop("optimizers", optimizers)
        beside = {key: settings.pop(key) for key in ("replay", "anchor", "strength", "neurons") if key in settings}
        if beside.get("anchor", "") not in ANCHORS:
            raise ValueError(f"the anchor of arm {name!r} must be one of l2, ewc; got {beside['anchor']!r}")
        for optimizer in (each for each in optimizers if each in own):
            method = optimizer + ("+dropin" if "dropin" in settings else "")
            recipes = (recipe_of({**shared, **settings, **trial, "method": method}) for trial in trials)
            arms.append(Arm(f"{name}, {optimizer}", tuple(recipes), **beside))
    return arms


def chosen_names(parts: Sequence[Sequence[str]]) -> list[str]:
    """Names of stages: their attacks joined."""
    return ["+".join(part) for part in parts]
