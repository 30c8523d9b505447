"""The loader on hand-written corpora in the published layout, LA and PA."""

import logging
import re

import numpy as np
import pytest
import soundfile

from hf_neuroplastic.audio import AudioDecodingError, load_asvspoof2019

LA_LINES = [
    "LA_0079 LA_T_1138215 - - bonafide",
    "LA_0079 LA_T_1271820 - - bonafide",
    "LA_0081 LA_T_1004644 - A01 spoof",
    "LA_0081 LA_T_1056709 - A04 spoof",
]
PA_LINES = ["PA_0079 PA_T_0000001 aaa - bonafide", "PA_0095 PA_T_0005731 aab AA spoof"]


def write_split(root, lines, access="LA", split="train", suffix="trn"):
    """Protocol and audio of one split under root/<access>; returns the folder of audio."""
    protocols = root / access / f"ASVspoof2019_{access}_cm_protocols"
    audio = root / access / f"ASVspoof2019_{access}_{split}" / "flac"
    protocols.mkdir(parents=True, exist_ok=True)
    audio.mkdir(parents=True, exist_ok=True)
    (protocols / f"ASVspoof2019.{access}.cm.{split}.{suffix}.txt").write_text("\n".join(lines) + "\n")
    for index, line in enumerate(lines):
        fields = line.split()
        if len(fields) > 1:
            soundfile.write(audio / f"{fields[1]}.flac", np.full(800 + index, 0.1), 16000)
    return audio


def test_la_columns(tmp_path):
    audio = write_split(tmp_path, LA_LINES)
    rows = load_asvspoof2019(tmp_path, "LA", "train")
    assert rows.features["label"].names == ["bonafide", "spoof"]
    assert rows["label"][:] == [0, 0, 1, 1]
    assert rows["speaker"][:] == ["LA_0079", "LA_0079", "LA_0081", "LA_0081"]
    assert rows["attack"][:] == ["-", "-", "A01", "A04"]
    assert rows["condition"][:] == ["-"] * 4
    assert rows["file_name"][:] == [line.split()[1] for line in LA_LINES]
    assert rows[2]["audio"] == {"bytes": None, "path": str(audio / "LA_T_1004644.flac")}


def test_pa_has_environments(tmp_path):
    write_split(tmp_path, PA_LINES, access="PA")
    rows = load_asvspoof2019(tmp_path, "PA", "train")
    assert rows["condition"][:] == ["aaa", "aab"]
    assert rows["attack"][:] == ["-", "AA"]
    assert rows["label"][:] == [0, 1]


@pytest.mark.parametrize(("split", "suffix"), [("train", "trn"), ("dev", "trl"), ("eval", "trl")])
def test_every_split_from_either_root(tmp_path, split, suffix):
    write_split(tmp_path, LA_LINES[1:3], split=split, suffix=suffix)
    for root in (tmp_path, tmp_path / "LA", str(tmp_path)):
        assert len(load_asvspoof2019(root, "LA", split)) == 2


def test_blank_lines_do_not_count(tmp_path):
    write_split(tmp_path, [LA_LINES[0], "", LA_LINES[2], ""])
    assert len(load_asvspoof2019(tmp_path)) == 2


BAD_LINES = {
    "LA_0079 LA_T_1 - bonafide": "expected 5 columns, found 4",
    "LA_0079 LA_T_1 - - bonafide extra": "expected 5 columns, found 6",
    "LA_0079 LA_T_1 - - genuine": "the key must be one of ['bonafide', 'spoof']",
    "LA_0079 LA_T_1 - A01 bonafide": "the attack must be '-' for bonafide",
    "LA_0079 LA_T_1 - - spoof": "a name for spoof",
    LA_LINES[0]: "LA_T_1138215 is listed twice",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_malformed_lines_are_quoted(tmp_path, line):
    write_split(tmp_path, [LA_LINES[0], line])
    with pytest.raises(ValueError, match=re.escape(BAD_LINES[line])) as caught:
        load_asvspoof2019(tmp_path)
    message = str(caught.value)
    assert "train.trn.txt, line 2" in message
    assert repr(line) in message


def test_empty_protocol_is_refused(tmp_path):
    write_split(tmp_path, [])
    with pytest.raises(ValueError, match="lists no files"):
        load_asvspoof2019(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("VC", "train"), "access must be one of ['LA', 'PA'], got 'VC'"),
        (("LA", "test"), "split must be one of ['train', 'dev', 'eval'], got 'test'"),
    ],
)
def test_unknown_access_or_split(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        load_asvspoof2019(tmp_path, *arguments)


def test_absent_corpus_says_where_it_looked(tmp_path):
    write_split(tmp_path, LA_LINES)
    with pytest.raises(FileNotFoundError) as caught:
        load_asvspoof2019(tmp_path, "LA", "eval")
    assert "ASVspoof2019.LA.cm.eval.trl.txt" in str(caught.value)
    assert "give the folder that holds 'LA'" in str(caught.value)


def test_absent_audio_is_counted_and_named(tmp_path):
    audio = write_split(tmp_path, LA_LINES)
    (audio / "LA_T_1271820.flac").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 audio files .* LA_T_1271820\.flac"):
        load_asvspoof2019(tmp_path)


def break_files(audio):
    (audio / "LA_T_1138215.flac").write_bytes(b"")
    (audio / "LA_T_1056709.flac").write_bytes(b"fLaC, but not really")


def test_unreadable_files_are_skipped_by_name(tmp_path, caplog):
    break_files(write_split(tmp_path, LA_LINES))
    with caplog.at_level(logging.WARNING):
        rows = load_asvspoof2019(tmp_path, on_error="skip")
    assert rows["file_name"][:] == ["LA_T_1271820", "LA_T_1004644"]
    assert rows["label"][:] == [0, 1]
    assert "Skipped 2 of 4" in caplog.text
    assert "LA_T_1138215.flac" in caplog.text
    assert "LA_T_1056709.flac" in caplog.text


def test_unreadable_files_are_refused_by_name(tmp_path):
    break_files(write_split(tmp_path, LA_LINES))
    with pytest.raises(AudioDecodingError, match=r"2 of 4 (.|\n)*LA_T_1138215(.|\n)*LA_T_1056709"):
        load_asvspoof2019(tmp_path, on_error="raise")
    assert len(load_asvspoof2019(tmp_path)) == 4  # not asked for, not read


def test_nothing_readable_is_refused_even_when_skipping(tmp_path):
    audio = write_split(tmp_path, LA_LINES[:1])
    break_files(audio)
    with pytest.raises(AudioDecodingError, match="1 of 1"):
        load_asvspoof2019(tmp_path, on_error="skip")


def test_unknown_on_error(tmp_path):
    write_split(tmp_path, LA_LINES)
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        load_asvspoof2019(tmp_path, on_error="ignore")
