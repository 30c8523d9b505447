"""How a detector is fine-tuned: one object that a YAML file holds, the command line changes, and every run writes down."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..neurons.config import DropInConfig
from .augment import augmentation

METHODS = ("adamw", "adamw+dropin", "neuroplastic", "neuroplastic+dropin", "neuroplastic-8bit")
PRECISIONS = ("fp32", "bf16", "fp16")
BALANCED_COLUMNS = {"corpora": "corpus", "classes": "label", "attacks": "attack"}  # from the outer to the inner
PRESETS = ("original", "dropin", "adapter", "plasticity", "redo", "continual_backprop", "compress")
FREEZES = ("nothing", "features", "all", "base", "existing", "first:K", "last:K")
ADAPTS = ("base", "existing")  # of these, those that leave new neurons to learn


def is_balance(value: Any) -> bool:
    parts = value.split(",") if isinstance(value, str) and value else []
    return value == "" or (bool(parts) and set(parts) <= set(BALANCED_COLUMNS) and len(set(parts)) == len(parts))


def is_freeze(value: Any) -> bool:
    kind, _, count = str(value).partition(":")
    return value in FREEZES[:5] or (kind in ("first", "last") and count.isdigit() and int(count) > 0)


def is_class_weights(value: Any) -> bool:
    if value in ("auto", "none"):
        return True
    try:
        weights = [float(part) for part in str(value).split(",")]
    except ValueError:
        return False
    return len(weights) == 2 and all(0 < weight < float("inf") for weight in weights)


def whole(lowest: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= lowest,
        f"a whole number of at least {lowest}",
    )


def number(lowest: float, highest: float, *, above: bool = False) -> tuple[Callable[[Any], bool], str]:
    def allowed(value: Any) -> bool:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return good and (lowest < value if above else lowest <= value) and value <= highest

    return allowed, f"a number {'above' if above else 'of at least'} {lowest:g} and at most {highest:g}"


def one_of(*allowed: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in allowed, f"one of {', '.join(allowed)}"


def optional(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or none"


FLAG = (lambda value: isinstance(value, bool), "true or false")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": one_of(*METHODS),
    "steps": whole(1),
    "batch_size": whole(1),
    "accumulate": whole(1),
    "learning_rate": number(0, 1, above=True),  # AdamW moves every weight by about this much per step
    "weight_decay": number(0, 100),
    "warmup_share": number(0, 1),
    "seconds": number(0, 3600, above=True),
    "augment": (lambda value: isinstance(value, str), "parts such as 'rawboost:5,codec,noise', or nothing"),
    "class_weights": (is_class_weights, "'auto', 'none', or two positive numbers 'bonafide,spoof', such as '0.9,0.1'"),
    "balance": (is_balance, f"one or more of {', '.join(BALANCED_COLUMNS)}, by commas, or nothing"),
    "eval_every": optional(whole(1)),
    "patience": optional(whole(1)),
    "average": whole(1),
    "precision": one_of(*PRECISIONS),
    "gradient_checkpointing": FLAG,
    "freeze": (is_freeze, f"one of {', '.join(FREEZES)}"),
    "lora": optional(whole(1)),
    "seed": whole(0),
    "workers": whole(0),
    "report_to": (
        lambda value: isinstance(value, str),
        "names of Trainer's integrations, such as 'tensorboard,trackio'",
    ),
    "dropin": (lambda value: isinstance(value, DropInConfig), "a DropInConfig, or a mapping of its settings"),
}


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning run.

    Attributes:
        method: "adamw" (torch's) or "neuroplastic" (NeuroPlastic), each alone or with "+dropin"; "neuroplastic-8bit".
        steps: optimizer steps. batch_size: per process. accumulate: batches per step.
        learning_rate: the peak, after a warm-up over `warmup_share` of the steps; a cosine leads to 0.
        seconds: length of a window of audio; the default is the field's 64,600 samples at 16 kHz. Windows are random in
            training, shorter recordings are repeated.
        augment: parts by commas, such as "rawboost:5,codec,noise@.3", see `hf_neuroplastic.audio.augment.augmentation`; "" for
            none. Decided by seed, epoch and recording.
        class_weights: of the loss. "auto" weighs both classes alike, whatever their number; "none"; or "bonafide,spoof".
        balance: what weighs alike in the training data, by repeating utterances: "corpora", "classes" within a corpus,
            "attacks" within a class (bona fide speech counts as one where classes are not asked for), or several by commas; ""
            leaves the data as they are.
        eval_every: steps between measurements of the dev EER; None takes a tenth of `steps`.
        patience: end training after so many measurements without a better dev EER; None never does.
        average: besides the best checkpoint, try the mean of the weights of this many best ones, and keep what does better
            on dev.
        precision: "fp32", or "bf16" or "fp16" under autocast.
        freeze: "nothing"; "features", the convolutional front end; "all" but the head; "first:K" or "last:K": train only the
            first or last K layers, and the head. For neurons that can be kept apart (DropInConfig.adapter), "base": all but
            new neurons and the head, or "existing": all but new neurons.
        lora: rank of low-rank adapters (PEFT) that are trained in place of the weights, and merged at the end.
        seed: of weights, order, windows and augmentation. workers: processes that load audio.
        report_to: Trainer's integrations, by commas.
        dropin: settings of DropIn, for methods with it; in a mapping also `preset`, such as "dropin", and what that takes.

    Raises:
        ValueError: a value out of its range, by name. ImportError: a part of `augment` needs a library that is not installed.
    """

    method: str = "neuroplastic+dropin"
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    seconds: float = 4.0375
    augment: str = ""
    class_weights: str = "auto"
    balance: str = ""
    eval_every: int | None = None
    patience: int | None = None
    average: int = 1
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    freeze: str = "features"
    lora: int | None = None
    seed: int = 0
    workers: int = 0
    report_to: str = ""
    dropin: DropInConfig = field(default_factory=DropInConfig)

    def __post_init__(self) -> None:
        for name, (allowed, rule) in RULES.items():
            value = getattr(self, name)
            if not allowed(value):
                raise ValueError(f"{name} must be {rule}; got {value!r}")
        augmentation(self.augment)
        if self.lora is not None and self.method.endswith("+dropin"):
            raise ValueError(
                f"lora={self.lora} and method={self.method!r} exclude each other: neurons of frozen layers are not replaced; "
                f"take method={self.method.removesuffix('+dropin')!r}"
            )

        if self.freeze in ADAPTS:
            needed = {
                "method": (self.method.endswith("+dropin"), "one with +dropin"),
                "dropin": (
                    self.dropin.freeze_existing and self.dropin.extra_neurons is not None,
                    "DropInConfig.adapter(n)",
                ),
                "weight_decay": (self.weight_decay == 0, "0, since decay would move what is to stay"),
            }
            for setting, (met, wanted) in needed.items():
                if not met:
                    got = getattr(self, setting)
                    raise ValueError(
                        f"freeze={self.freeze!r} lets new neurons learn, and needs {setting} to be {wanted}; got {got!r}"
                    )

    @property
    def measured_every(self) -> int:
        """Steps between measurements on dev."""
        return self.eval_every or max(1, self.steps // 10)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON take them."""
        return {**{name: getattr(self, name) for name in RULES}, "dropin": self.dropin.to_dict()}


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these settings, the others at their defaults.

    Raises:
        ValueError: an unknown setting, with the known ones, or a value out of its range.
    """
    known = [each.name for each in dataclasses.fields(Recipe)]
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        raise ValueError(f"a recipe has no {', '.join(unknown)}; its settings are {', '.join(known)}")
    given = dict(values)
    if isinstance(given.get("dropin"), Mapping):
        given["dropin"] = _dropin_of(dict(given["dropin"]))
    return Recipe(**given)


def _dropin_of(values: dict[str, Any]) -> DropInConfig:
    """A DropInConfig of its settings, or of a `preset` and what that takes."""
    preset = values.pop("preset", None)
    if preset is None:
        return DropInConfig.from_dict(values)
    if preset not in PRESETS:
        raise ValueError(f"dropin has no preset {preset!r}; presets are {', '.join(PRESETS)}")
    try:
        return getattr(DropInConfig, preset)(**values)
    except TypeError as error:
        raise ValueError(f"dropin with preset {preset!r}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Takes 5e-5 for a number, as YAML 1.2 does; PyYAML, of YAML 1.1, wants 5.0e-5."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError, with the file's name, where it holds something else."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} must hold a mapping of settings, such as 'steps: 1000'; got {type(content).__name__}")
    return content


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a mapping that `read_yaml` reads."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
