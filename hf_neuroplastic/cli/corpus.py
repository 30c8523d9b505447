"""The corpora that commands read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = ("asvspoof2019", "folder")
logger = logging.getLogger(__name__)


def load_split(settings: Mapping[str, Any], split: str) -> Any:
    """One split, unchecked. settings: `data`, `format` and `access`."""
    from ..audio import load_asvspoof2019, load_folder

    if settings["format"] not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {settings['format']!r}")
    if settings["format"] == "folder":
        return load_folder(settings["data"], split)  # type: ignore[arg-type]
    return load_asvspoof2019(settings["data"], settings["access"], split)  # type: ignore[arg-type]


def load_splits(settings: Mapping[str, Any], splits: Sequence[str], workers: int) -> dict[str, Any]:
    """The splits that the corpus has, every file checked; `train` must be there, others may be absent, which is said."""
    from ..audio import keep_readable

    found = {}
    for split in splits:
        try:
            rows = load_split(settings, split)
        except FileNotFoundError as error:
            if split == "train":
                raise
            logger.warning("without the split %r: %s", split, error)
            continue
        found[split] = keep_readable(rows, on_error=settings["on_error"], num_proc=workers or None)
    return found
