"""All layouts of corpora: which one a folder has, which splits are there, and the rows of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from . import asvspoof5, asvspoof2019, asvspoof2021, fake_or_real, folder, in_the_wild, mlaad, wavefake
from .rows import OnError, check_one_of
from .table import load_table, splits_in_table

THREE = ("train", "dev", "eval")


@dataclass(frozen=True)
class Options:
    """What some layouts need besides a folder; None lets the folder tell.

    access: LA, PA or DF of ASVspoof. variant: of Fake-or-Real. real: folder of the real speech of MLAAD and WaveFake.
    columns, labels: of tables, see `load_table`.
    """

    access: str | None = None
    variant: str | None = None
    real: str | None = None
    columns: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Layout:
    """One layout.

    lacks: what a folder lacks to have this layout; "" if nothing. splits: those that are there. load: rows of a split.
    options: names of the `Options` that mean something here.
    """

    lacks: Callable[[Path, Options], str]
    splits: Callable[[Path, Options], list[str]]
    load: Callable[[Path, str, Options, Mapping[str, Any]], Dataset]
    options: tuple[str, ...] = ()


def _access(held: list[str], options: Options) -> str:
    return options.access or next(iter(held), "LA")


def _splits_2019(root: Path, options: Options) -> list[str]:
    access = _access(asvspoof2019.accesses_in(root), options)
    folders = (root / access, root)
    return [s for s in THREE if any(asvspoof2019.protocol_path(f, access, s).is_file() for f in folders)]


def _load_2019(root: Path, split: str, options: Options, how: Mapping[str, Any]) -> Dataset:
    access = _access(asvspoof2019.accesses_in(root), options)
    return asvspoof2019.load_asvspoof2019(root, access, split, **how)


def _splits_2021(root: Path, options: Options) -> list[str]:
    return asvspoof2021.phases_in(root, _access(asvspoof2021.accesses_in(root), options))


def _load_2021(root: Path, split: str, options: Options, how: Mapping[str, Any]) -> Dataset:
    access = _access(asvspoof2021.accesses_in(root), options)
    return asvspoof2021.load_asvspoof2021(root, access, split, **how)


def _splits_of_folder(root: Path, options: Options) -> list[str]:
    return folder.splits_in(folder.corpus_folder(root))


def _lacks_folder(root: Path, options: Options) -> str:
    inner = folder.corpus_folder(root) if root.is_dir() else root
    if not root.is_dir():
        return "a folder"
    try:
        return "" if folder.splits_in(inner) else "folders of real and of fake files"
    except (ValueError, FileNotFoundError) as error:
        return f"folders of real and of fake files ({error})"


def _unless(there: Any, what: str) -> str:
    return "" if there else what


LAYOUTS: dict[str, Layout] = {
    "asvspoof2019": Layout(
        lambda root, _: _unless(asvspoof2019.accesses_in(root), "{LA,PA}/ASVspoof2019_{LA,PA}_cm_protocols"),
        _splits_2019,
        _load_2019,
        ("access",),
    ),
    "asvspoof2021": Layout(
        lambda root, _: _unless(
            asvspoof2021.accesses_in(root), "ASVspoof2021_{LA,DF}_eval and keys/{LA,DF}/CM/trial_metadata.txt"
        ),
        _splits_2021,
        _load_2021,
        ("access",),
    ),
    "asvspoof5": Layout(
        lambda root, _: _unless(
            any(asvspoof5.protocol_path(root, split) for split in THREE),
            "ASVspoof5.{train,dev.track_1,eval.track_1}.tsv",
        ),
        lambda root, _: [split for split in THREE if asvspoof5.protocol_path(root, split)],
        lambda root, split, _, how: asvspoof5.load_asvspoof5(root, split, **how),
    ),
    "in-the-wild": Layout(
        lambda root, _: _unless(in_the_wild.corpus_folder(root), "meta.csv with the columns file, speaker and label"),
        lambda root, _: ["eval"],
        lambda root, split, _, how: in_the_wild.load_in_the_wild(root, split, **how),
    ),
    "mlaad": Layout(
        lambda root, _: _unless(mlaad.fake_folder(root), "fake/<language>/<model>/meta.csv"),
        lambda root, _: ["eval"],
        lambda root, split, options, how: mlaad.load_mlaad(root, split, real=options.real, **how),
        ("real",),
    ),
    "fake-or-real": Layout(
        lambda root, _: _unless(fake_or_real.variants_in(root), f"one of {', '.join(fake_or_real.VARIANTS)}"),
        lambda root, _: list(THREE),
        lambda root, split, options, how: fake_or_real.load_fake_or_real(root, split, variant=options.variant, **how),
        ("variant",),
    ),
    "wavefake": Layout(
        lambda root, _: _unless(wavefake.generated_folder(root), "generated_audio"),
        lambda root, _: list(THREE),
        lambda root, split, options, how: wavefake.load_wavefake(root, split, real=options.real, **how),
        ("real",),
    ),
    "table": Layout(
        lambda root, _: _unless(
            root.is_file() and root.suffix.lower() in (".csv", ".tsv", ".txt"), "a CSV or TSV file"
        ),
        lambda root, options: splits_in_table(root, options.columns),
        lambda root, split, options, how: load_table(
            root, split, columns=options.columns, labels=options.labels, **how
        ),
        ("columns", "labels"),
    ),
    "folder": Layout(
        _lacks_folder,
        _splits_of_folder,
        lambda root, split, _, how: folder.load_folder(root, split, **how),
    ),
}
FORMATS = ("auto", *LAYOUTS)


def recognise(root: str | Path, options: Options | None = None) -> str:
    """The name of the layout of a corpus. "folder" is what is left where no other one fits.

    Raises:
        FileNotFoundError: nothing at `root`, or no layout fits, with what each lacks.
        ValueError: several fit.
    """
    root, options = Path(root), options or Options()
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder or table")
    special = {name: layout for name, layout in LAYOUTS.items() if name != "folder"}
    lacking = {name: layout.lacks(root, options) for name, layout in special.items()}
    fitting = [name for name, lack in lacking.items() if not lack]
    if len(fitting) > 1:
        raise ValueError(f"{root} has the layouts {' and '.join(fitting)}; choose one of them as format")
    if fitting:
        return fitting[0]
    lacking["folder"] = LAYOUTS["folder"].lacks(root, options)
    if lacking["folder"]:
        told = "; ".join(f"{name} needs {lack}" for name, lack in lacking.items())
        raise FileNotFoundError(f"{root} has no layout that is known: {told}")
    return "folder"


def require_used(options: Options, layouts: Iterable[str]) -> None:
    """Raises ValueError for an option that was given and means nothing to any of these layouts."""
    used = {name for layout in layouts for name in LAYOUTS[layout].options}
    for name, value in vars(options).items():
        if value is not None and name not in used:
            meant = ", ".join(layout for layout, each in LAYOUTS.items() if name in each.options)
            raise ValueError(f"{name} means something to {meant} only; the corpus has the layout {', '.join(layouts)}")


def restricted(options: Options, layout: str) -> Options:
    """The options that mean something to a layout."""
    return Options(**{name: getattr(options, name) for name in LAYOUTS[layout].options})


def splits_of(root: str | Path, format: str = "auto", options: Options | None = None) -> list[str]:
    """The splits that a corpus has; errors as `load_corpus`."""
    options = options or Options()
    return LAYOUTS[layout_of(root, format, options)].splits(Path(root), options)


def layout_of(root: str | Path, format: str = "auto", options: Options | None = None) -> str:
    """The name of the layout, asked for or recognised; errors as `load_corpus`."""
    check_one_of("format", format, FORMATS)
    if format == "auto":
        return recognise(root, options)
    lack = LAYOUTS[format].lacks(Path(root), options or Options())
    if lack:
        raise FileNotFoundError(
            f"{root} has not the layout {format}: it lacks {lack}; format='auto' tells which one it has"
        )
    return format


def load_corpus(
    root: str | Path,
    split: str = "train",
    format: str = "auto",
    *,
    options: Options | None = None,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of a corpus of any layout, or "all" of its splits.

    Args:
        root: folder of the corpus, or a table. format: one of `FORMATS`; "auto" recognises it.
        on_error, check: as `load_asvspoof2019`.

    Raises:
        ValueError: another format or split; and what the layout's own loader raises.
        FileNotFoundError: no such corpus, or no such split in it.
    """
    root, options = Path(root), options or Options()
    name = layout_of(root, format, options)
    require_used(options, [name])
    layout, how = LAYOUTS[name], {"on_error": on_error, "check": check}
    there = layout.splits(root, options)
    if split == "all":
        return concatenate_datasets([layout.load(root, each, options, how) for each in there])
    if split in THREE and split not in there:
        raise FileNotFoundError(f"{root} ({name}) has no split {split!r}; it has {', '.join(there) or 'none'}")
    return layout.load(root, split, options, how)
