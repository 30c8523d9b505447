"""The corpora that commands read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .console import Report

FORMATS = ("asvspoof2019", "folder")
logger = logging.getLogger(__name__)


def load_split(settings: Mapping[str, Any], split: str) -> Any:
    """One split, its audio unread. settings: `data`, `format`, `access` and `on_error`."""
    from ..audio import load_asvspoof2019, load_folder

    if settings["format"] not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {settings['format']!r}")
    how = {"on_error": settings["on_error"], "check": False}
    if settings["format"] == "folder":
        return load_folder(settings["data"], split, **how)  # type: ignore[arg-type]
    return load_asvspoof2019(settings["data"], settings["access"], split, **how)  # type: ignore[arg-type]


def load_splits(settings: Mapping[str, Any], splits: Sequence[str], workers: int, report: Report) -> dict[str, Any]:
    """The splits that the corpus has, every file checked; the first must be there, others may be absent, which is said."""
    from ..audio import keep_readable
    from ..audio.corpora.leaks import warn_of_leaks

    found = {}
    for split in splits:
        try:
            rows = load_split(settings, split)
        except FileNotFoundError as error:
            if split == splits[0]:
                raise
            logger.warning("without the split %r: %s", split, error)
            continue
        found[split] = keep_readable(
            rows,
            on_error=settings["on_error"],
            workers=workers,
            progress=partial(report, f"checking {split}"),
        )
    warn_of_leaks(found)
    return found
