"""The corpora that commands read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .console import Report

FORMATS = (
    "auto (default), asvspoof2019, asvspoof2021, asvspoof5, in-the-wild, mlaad, fake-or-real, wavefake, table or folder"
)
OPTIONS = ("access", "variant", "real")
DEFAULTS: dict[str, Any] = {"format": "auto", "access": None, "variant": None, "real": None, "on_error": "raise"}
logger = logging.getLogger(__name__)


def load_splits(settings: Mapping[str, Any], splits: Sequence[str], workers: int, report: Report) -> dict[str, Any]:
    """The splits of a corpus, every file checked; the first must be there, others may be absent, which is said.

    settings: `data`, one folder or several, whose rows are joined, and `DEFAULTS`.
    """
    from ..audio.corpora.leaks import warn_of_leaks

    folders = [settings["data"]] if isinstance(settings["data"], str) else list(settings["data"])
    found = {}
    for split in splits:
        rows = [_load(folder, split, settings, workers, report, split == splits[0]) for folder in folders]
        held = [each for each in rows if each is not None]
        if held:
            found[split] = _joined(held)
    warn_of_leaks(found)
    return found


def _load(
    folder: str, split: str, settings: Mapping[str, Any], workers: int, report: Report, needed: bool
) -> Any | None:
    from ..audio import keep_readable
    from ..audio.corpora.layouts import Options, load_corpus, recognise

    options = Options(**{name: settings.get(name) for name in OPTIONS})
    layout = recognise(folder, options) if settings["format"] == "auto" else settings["format"]
    try:
        rows = load_corpus(folder, split, layout, options=options, on_error=settings["on_error"], check=False)
    except FileNotFoundError as error:
        if needed:
            raise
        logger.warning("without the split %r: %s", split, error)
        return None
    rows = keep_readable(
        rows, on_error=settings["on_error"], workers=workers, progress=partial(report, f"checking {split}")
    )
    report.say(f"{folder} ({layout}), {split}: {_told(rows)}")
    return rows


def _joined(held: Sequence[Any]) -> Any:
    from datasets import concatenate_datasets

    return held[0] if len(held) == 1 else concatenate_datasets(list(held))


def _told(rows: Any) -> str:
    """What a split holds, in words."""
    labels = rows["label"][:]
    kinds = {name: sorted(set(rows[name]) - {"-"}) for name in ("attack", "condition", "speaker")}
    counts = [f"{len(names)} {name}s" for name, names in kinds.items() if names]
    hours = sum(rows["seconds"]) / 3600
    return ", ".join(
        [f"{labels.count(0)} bona fide and {labels.count(1)} spoofed files", f"{hours:.2f} hours", *counts]
    )
