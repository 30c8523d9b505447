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
OPTIONS = ("access", "variant", "real", "columns", "labels")
DEFAULTS: dict[str, Any] = {"format": "auto", **dict.fromkeys(OPTIONS), "on_error": "raise"}
logger = logging.getLogger(__name__)


def options_of(settings: Mapping[str, Any]) -> Any:
    """What `Options` holds, of settings as the command line has them."""
    from ..audio.corpora.layouts import Options

    told: dict[str, Any] = {name: settings.get(name) for name in OPTIONS}
    return Options(**told | {name: _pairs(name, told[name]) for name in ("columns", "labels")})


def _pairs(name: str, told: str | None) -> dict[str, str] | None:
    """Of "name=value,name=value"."""
    if told is None:
        return None
    pairs = [[part.strip() for part in pair.split("=")] for pair in str(told).split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ValueError(f"--{name} must be pairs such as name=value,name=value; got {told!r}")
    return {key: value for key, value in pairs}


def load_splits(settings: Mapping[str, Any], splits: Sequence[str], workers: int, report: Report) -> dict[str, Any]:
    """The splits of a corpus, every file checked; the first must be there, others may be absent, which is said.

    settings: `data`, one folder or several, whose rows are joined, and `DEFAULTS`.
    """
    from ..audio.corpora.joined import corpus_names, family_of, join, told_apart, with_corpus
    from ..audio.corpora.layouts import layout_of, load_corpus, require_used, restricted, splits_of
    from ..audio.corpora.leaks import warn_of_leaks

    folders = [settings["data"]] if isinstance(settings["data"], str) else list(settings["data"])
    asked = options_of(settings)
    layouts = {folder: layout_of(folder, settings["format"], asked) for folder in folders}
    require_used(asked, layouts.values())
    found = {}
    for split in splits:
        held = []
        for (folder, layout), name in zip(layouts.items(), corpus_names(list(layouts)), strict=True):
            options = restricted(asked, layout)
            there = splits_of(folder, layout, options)
            if split in there or split == "all":
                rows = load_corpus(folder, split, layout, options=options, on_error=settings["on_error"], check=False)
                rows = _checked(rows, settings["on_error"], workers, split, report)
                held.append(with_corpus(rows, family_of(folder, layout), name))
                report.say(f"{folder} ({layout}), {split}: {_told(held[-1])}")
            else:
                logger.warning("%s (%s) has no split %r; it has %s", folder, layout, split, ", ".join(there) or "none")
        if held:
            found[split] = join(held)
        elif split == splits[0]:
            raise FileNotFoundError(f"no split {split!r} in {', '.join(folders)}; it is needed")
    warn_of_leaks(found)
    return told_apart(found)


def splits_found(settings: Mapping[str, Any]) -> list[str]:
    """The splits that the one corpus in `data` has."""
    from ..audio.corpora.layouts import layout_of, restricted, splits_of

    asked, folder = options_of(settings), settings["data"]
    layout = layout_of(folder, settings["format"], asked)
    return list(splits_of(folder, layout, restricted(asked, layout)))


def _checked(rows: Any, on_error: Any, workers: int, split: str, report: Report) -> Any:
    from ..audio import keep_readable

    return keep_readable(rows, on_error=on_error, workers=workers, progress=partial(report, f"checking {split}"))


def _told(rows: Any) -> str:
    """What a split holds, in words."""
    labels = rows["label"][:]
    kinds = {name: sorted(set(rows[name]) - {"-"}) for name in ("attack", "condition", "speaker")}
    counts = [f"{len(names)} {name}s" for name, names in kinds.items() if names]
    hours = sum(rows["seconds"]) / 3600
    return ", ".join(
        [f"{labels.count(0)} bona fide and {labels.count(1)} spoofed files", f"{hours:.2f} hours", *counts]
    )
