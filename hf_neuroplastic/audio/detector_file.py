"""What a detector needs besides its weights, as detector.json beside them: its window, its prior, its threshold."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DETECTOR = "detector.json"


@dataclass(frozen=True)
class DetectorFile:
    """A detector's window, prior and threshold.

    seconds: length of the windows that the detector was trained on. log_prior_odds: of bona fide against spoof in training,
    class weights counted in; a log-likelihood ratio is the log-odds less these. threshold: the log-likelihood ratio from which
    on a recording is called bona fide; None before `evaluate` chose one. attacks: of the training data, by family of
    corpora, see `corpora.joined`; None where these are not known.
    """

    seconds: float = 4.0375
    log_prior_odds: float = 0.0
    threshold: float | None = None
    attacks: dict[str, list[str]] | None = None


def log_prior_odds(counts: Sequence[int], class_weights: Sequence[float]) -> float:
    """Of bona fide against spoof, as weighted cross entropy sees the data. counts, class_weights: (bona fide, spoof)."""
    bona_fide, spoof = (count * weight for count, weight in zip(counts, class_weights, strict=True))
    return math.log(bona_fide / spoof)


def read_detector(folder: Path) -> DetectorFile:
    """What stands beside the weights in `folder`; defaults where nothing does, as for models of others.

    Raises:
        ValueError: a file that is no JSON object of these numbers, by name.
    """
    path = folder / DETECTOR
    if not path.is_file():
        return DetectorFile()
    known = {field.name for field in dataclasses.fields(DetectorFile)}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        values = {name: value for name, value in content.items() if name in known}
        read = DetectorFile(**values)
        numbers = (read.seconds, read.log_prior_odds, 0.0 if read.threshold is None else read.threshold)
        if not all(map(math.isfinite, numbers)) or not read.seconds > 0:
            raise ValueError(f"a value is not a finite number: {values}")
        for family, names in (read.attacks or {}).items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"attacks must be names, got {names!r} of {family}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove the file, and run evaluate again for a threshold"
        ) from None
    return read


def write_detector(folder: Path, content: DetectorFile) -> None:
    draft = folder / f".{DETECTOR}"
    draft.write_text(json.dumps(dataclasses.asdict(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, folder / DETECTOR)
