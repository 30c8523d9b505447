"""Training, dev and test utterances of a stream."""

import numpy as np
import pytest

from hf_neuroplastic.audio.corpora.rows import audio_dataset
from hf_neuroplastic.audio.stream.parts import PARTS, examples_of, parts_of, trials_of
from hf_neuroplastic.audio.stream.settings import stream_of


def corpus(speakers=24, attacks=("A01", "A02", "A03")):
    rows = [
        (f"s{speaker}", attack, take) for speaker in range(speakers) for attack in ("-", *attacks) for take in range(3)
    ]
    names = [f"{attack}-{speaker}-{take}.wav" for speaker, attack, take in rows]
    labels = [int(attack != "-") for _, attack, _ in rows]
    columns = {"file_name": names, "attack": [a for _, a, _ in rows], "speaker": [s for s, _, _ in rows]}
    return audio_dataset(names, labels, columns)


def stream(**changes):
    return stream_of({"start": "A01", "stages": ["A02", "A03"], "arms": ["full"], **changes})


@pytest.mark.parametrize(("apart", "column"), [("speaker", "speaker"), ("utterance", "file_name")])
def test_parts_share_nothing_and_hold_every_attack(apart, column):
    data = corpus()
    parts = parts_of(data, stream(apart=apart))
    held = [(*parts.spoofed[part].values(), *parts.bona_fide[part].values()) for part in PARTS]
    owners = [{data[column][int(row)] for rows in each for row in rows} for each in held]
    assert sum(map(len, owners)) == len(set.union(*owners)) == len(set(data[column]))
    for part in PARTS:
        assert parts.spoofed[part].keys() == parts.bona_fide[part].keys() == {"A01", "A02", "A03"}
        for attack, rows in parts.spoofed[part].items():
            assert {data["attack"][int(row)] for row in rows} == {attack}
            assert {data["attack"][int(row)] for row in parts.bona_fide[part][attack]} == {"-"}


def test_a_part_hangs_on_the_name_alone():
    data = corpus()
    order = np.random.default_rng(0).permutation(len(data))
    first, second = parts_of(data, stream()), parts_of(data.select(order), stream())
    for part in PARTS:
        names = [sorted(each.data.select(each.spoofed[part]["A02"])["file_name"][:]) for each in (first, second)]
        assert names[0] == names[1]


def test_examples_are_of_both_classes_and_differ_by_seed_and_stage():
    parts = parts_of(corpus(), stream())
    drawn = {key: examples_of(parts, ["A02"], 5, *key) for key in ((0, 1), (0, 2), (1, 1))}
    for rows in drawn.values():
        assert [parts.data["label"][int(row)] for row in rows] == [0] * 5 + [1] * 5
        assert set(rows) <= set(parts.bona_fide["train"]["A02"]) | set(parts.spoofed["train"]["A02"])
    assert len({tuple(sorted(rows)) for rows in drawn.values()}) == 3
    assert np.array_equal(drawn[0, 1], examples_of(parts, ["A02"], 5, 0, 1))


def test_trials_are_the_same_for_every_seed():
    parts = parts_of(corpus(), stream())
    rows = trials_of(parts, "test", ["A01", "A03"], 2)
    assert sorted(set(rows["attack"])) == ["-", "A01", "A03"]
    assert (rows["attack"][:].count("A01"), rows["attack"][:].count("-")) == (2, 8)


def test_a_corpus_is_told_from_its_own_bona_fide_speech():
    data = corpus()
    of_corpus = ["X" if name[-5] == "0" else "Y" for name in data["file_name"][:]]
    parts = parts_of(data.add_column("corpus", of_corpus), stream(by="corpus", start=["X"], stages=["Y"]))
    for rows in (parts.data.select(examples_of(parts, ["Y"], 8, 0, 1)), trials_of(parts, "test", ["Y"], 4)):
        assert set(rows["corpus"]) == {"Y"}
        assert set(rows["label"]) == {0, 1}
    both = trials_of(parts, "test", ["X", "Y"], 1)
    assert [both["corpus"][:].count(name) for name in "XY"] == [1 + 4, 1 + 4]


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (corpus(), {"stages": ["A07", "A02"]}, "the data have no attack A07; they have A01, A02, A03"),
        (corpus(), {"by": "corpus"}, "by: corpus needs joined corpora"),
        (corpus(speakers=1), {}, "would hold fewer than 2 utterances of A01.*take apart: utterance"),
        (corpus().remove_columns("speaker"), {}, "does not tell speakers; take apart: utterance"),
    ],
)
def test_what_a_corpus_lacks_is_named(data, changes, words):
    with pytest.raises(ValueError, match=words):
        parts_of(data, stream(**changes))


def test_a_corpus_that_tells_no_attacks_has_no_stages():
    data = corpus()
    untold = audio_dataset(
        data["file_name"][:], data["label"][:], {"file_name": data["file_name"][:], "attack": ["-"] * len(data)}
    )
    with pytest.raises(ValueError, match="whose attack the data do not tell"):
        parts_of(untold, stream(start=[], stages=["-"], apart="utterance"))
