"""In-the-Wild (Mueller et al. 2022, arXiv 2203.16263): recordings of politicians and celebrities, for evaluation.

One folder holds `meta.csv` with the columns file, speaker and label, "bona-fide" or "spoof", and the files 0.wav, 1.wav, ...
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from .rows import OnError, check_on_error, check_one_of
from .table import read_table, table_rows

META = "meta.csv"


def load_in_the_wild(
    root: str | Path, split: str = "eval", *, on_error: OnError | None = None, check: bool = True
) -> Dataset:
    """All recordings; the only split is "eval". Arguments and errors as `load_asvspoof2019`."""
    check_on_error(on_error)
    check_one_of("split", split, ("eval",))
    folder = corpus_folder(Path(root))
    if folder is None:
        raise FileNotFoundError(f"root={str(root)!r} holds no {META} with the columns file, speaker and label.")
    return table_rows(folder / META, folder, on_error=on_error, check=check)


def corpus_folder(root: Path) -> Path | None:
    """`root`, or the folder release_in_the_wild in it, if its meta.csv has the columns of this corpus."""
    for folder in (root, root / "release_in_the_wild"):
        if (folder / META).is_file() and set(read_table(folder / META, rows=0)) >= {"file", "speaker", "label"}:
            return folder
    return None
