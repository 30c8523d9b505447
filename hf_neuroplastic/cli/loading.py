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
    from ..audio.corpora.layouts import Options, load_corpus, recognise, splits_of
    from ..audio.corpora.leaks import warn_of_leaks

    folders = [settings["data"]] if isinstance(settings["data"], str) else list(settings["data"])
    options = Options(**{name: settings.get(name) for name in OPTIONS})
    layouts = {f: recognise(f, options) if settings["format"] == "auto" else settings["format"] for f in folders}
    found = {}
    for split in splits:
        held = []
        for folder, layout in layouts.items():
            there = splits_of(folder, layout, options)
            if split in there or split == "all":
                rows = load_corpus(folder, split, layout, options=options, on_error=settings["on_error"], check=False)
                held.append(_checked(rows, settings["on_error"], workers, split, report))
                report.say(f"{folder} ({layout}), {split}: {_told(held[-1])}")
            else:
                logger.warning("%s (%s) has no split %r; it has %s", folder, layout, split, ", ".join(there) or "none")
        if held:
            found[split] = _joined(held)
        elif split == splits[0]:
            raise FileNotFoundError(f"no split {split!r} in {', '.join(folders)}; it is needed")
    warn_of_leaks(found)
    return found


def _checked(rows: Any, on_error: Any, workers: int, split: str, report: Report) -> Any:
    from ..audio import keep_readable

    return keep_readable(rows, on_error=on_error, workers=workers, progress=partial(report, f"checking {split}"))


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
