"""Several corpora as one: a column `corpus`, and attacks of one name told apart.

Attacks have names within a family of corpora: A01 of ASVspoof 2019 and A01 of ASVspoof 5 are not the same. `corpus` is
"family:folder".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from ..synthetic.corpus import MARKER

FAMILIES = {"asvspoof2021": "asvspoof2019"}  # attacks of 2021 are those of 2019; other layouts name their own


def family_of(place: str | Path, layout: str) -> str:
    """Whose names of attacks a corpus uses; corpora made here, whose marker says so, have names of their own."""
    try:
        return f"made-{json.loads((Path(place) / MARKER).read_text(encoding='utf-8'))['kind']}"
    except (OSError, ValueError, KeyError, TypeError):
        return FAMILIES.get(layout, layout)


def corpus_names(places: Sequence[str]) -> list[str]:
    """A name for each corpus: that of its folder or table, numbered where two have one name."""
    names = [Path(place).resolve().name for place in places]
    return names if len(set(names)) == len(names) else [f"{n}-{name}" for n, name in enumerate(names, start=1)]


def with_corpus(rows: Dataset, family: str, name: str) -> Dataset:
    """The rows with their corpus."""
    return _with_column(rows, "corpus", [f"{family}:{name}"] * len(rows))


def join(held: Sequence[Dataset]) -> Dataset:
    return held[0] if len(held) == 1 else concatenate_datasets(list(held))


def told_apart(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits, with "family/attack" in place of attacks whose name stands in corpora of two families."""
    families: dict[str, set[str]] = {}
    for rows in splits.values():
        for family, attack in _attacks(rows):
            families.setdefault(attack, set()).add(family)
    shared = {attack for attack, those in families.items() if len(those) > 1}
    return {split: _renamed(rows, shared) if shared else rows for split, rows in splits.items()}


def attacks_by_family(rows: Dataset) -> dict[str, list[str]]:
    """The attacks of each family; "" is that of rows without a corpus."""
    found: dict[str, list[str]] = {}
    for family, attack in _attacks(rows):
        found.setdefault(family, []).append(attack.removeprefix(f"{family}/"))
    return {family: sorted(found[family]) for family in sorted(found)}


def known_attacks(attacks: Mapping[str, Sequence[str]] | None, family: str) -> list[str] | None:
    """The attacks that a corpus of this family can have of `attacks_by_family`; None where it can have none."""
    found = [] if attacks is None else [*attacks.get(family, []), *attacks.get("", [])]
    return found or None


def _attacks(rows: Dataset) -> set[tuple[str, str]]:
    """Family and attack."""
    if "attack" not in rows.column_names:
        return set()
    attacks = rows["attack"][:]
    corpora = rows["corpus"][:] if "corpus" in rows.column_names else [""] * len(attacks)
    return {
        (corpus.partition(":")[0], attack)
        for corpus, attack in set(zip(corpora, attacks, strict=True))
        if attack != "-"
    }


def _renamed(rows: Dataset, shared: set[str]) -> Dataset:
    pairs = zip(rows["corpus"][:], rows["attack"][:], strict=True)
    named = [f"{corpus.partition(':')[0]}/{attack}" if attack in shared else attack for corpus, attack in pairs]
    return _with_column(rows.remove_columns("attack"), "attack", named)


def _with_column(rows: Dataset, name: str, values: Sequence[str]) -> Dataset:
    return rows.add_column(name, pa.array(values, pa.string()))
