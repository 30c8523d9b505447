"""Corpora that are joined keep their rows apart by corpus, and their attacks by family."""

import json

import pytest

from hf_neuroplastic.audio import audio_dataset
from hf_neuroplastic.audio.corpora.joined import (
    attacks_by_family,
    corpus_names,
    family_of,
    join,
    known_attacks,
    told_apart,
    with_corpus,
)


def rows(family, *attacks):
    labels = [int(attack != "-") for attack in attacks]
    return with_corpus(
        audio_dataset([f"{family}{i}.wav" for i in range(len(attacks))], labels, {"attack": attacks}), family, "here"
    )


def test_attacks_of_one_name_in_two_families_are_told_apart():
    splits = {
        "train": join([rows("asvspoof2019", "-", "A01", "A02"), rows("asvspoof5", "-", "A01")]),
        "eval": rows("asvspoof5", "-", "A01", "A09"),
    }
    found = told_apart(splits)
    assert found["train"]["attack"][:] == ["-", "asvspoof2019/A01", "A02", "-", "asvspoof5/A01"]
    assert found["eval"]["attack"][:] == ["-", "asvspoof5/A01", "A09"]
    attacks = attacks_by_family(found["train"])
    assert attacks == {"asvspoof2019": ["A01", "A02"], "asvspoof5": ["A01"]}
    assert known_attacks(attacks, "asvspoof2019") == ["A01", "A02"]
    assert known_attacks(attacks, "folder") is None
    assert told_apart({"train": splits["eval"]})["train"]["attack"][:] == ["-", "A01", "A09"]


def test_rows_of_no_corpus_have_attacks_that_any_corpus_may_have():
    attacks = attacks_by_family(audio_dataset(["a.wav", "b.wav"], [0, 1], {"attack": ["-", "vits"]}))
    assert attacks == {"": ["vits"]}
    assert known_attacks(attacks, "folder") == ["vits"]
    assert known_attacks(None, "folder") is None


@pytest.mark.parametrize(
    ("marker", "family"),
    [
        (None, "asvspoof2019"),
        ({"kind": "real"}, "made-real"),
        ({}, "asvspoof2019"),
        (["kind"], "asvspoof2019"),
    ],
)
def test_corpora_made_here_are_families_of_their_own(marker, family, tmp_path):
    if marker is not None:
        (tmp_path / "neuroplastic_corpus.json").write_text(json.dumps(marker))
    assert family_of(tmp_path, "asvspoof2021") == family


def test_corpora_have_the_names_of_their_folders_numbered_where_these_are_equal():
    assert corpus_names(["/data/a", "/data/b/"]) == ["a", "b"]
    assert corpus_names(["/data/a", "/other/a"]) == ["1-a", "2-a"]
