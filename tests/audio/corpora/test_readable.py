"""Every file is decoded once, and again only where the file has changed."""

import logging
import os

import numpy as np
import pytest
import soundfile

from hf_neuroplastic.audio import AudioDecodingError, audio_dataset, keep_readable
from hf_neuroplastic.audio.corpora import readable
from hf_neuroplastic.audio.corpora.leaks import warn_of_leaks


def corpus(folder, values, speakers=None):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.wav" for i in range(len(values))]
    for path, value in zip(paths, values, strict=True):
        soundfile.write(path, np.full(100, value), 16000)
    columns = {"file_name": [path.name for path in paths], "speaker": speakers or ["-"] * len(paths)}
    return audio_dataset(paths, ["bonafide"] * len(paths), columns)


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were decoded."""
    found, check = [], readable.check

    def noted(source, *, name=None):
        found.append(os.path.basename(source) if isinstance(source, str) else source)
        return check(source, name=name)

    monkeypatch.setattr(readable, "check", noted)
    return found


@pytest.mark.parametrize("workers", [0, 3])
def test_files_are_read_once_and_again_where_they_changed(tmp_path, read, workers):
    rows, memory = corpus(tmp_path / "c", [0.1, 0.2, 0.1]), tmp_path / "memory" / "checked.sqlite"
    first = keep_readable(rows, memory=memory, workers=workers)
    assert sorted(read) == ["0.wav", "1.wav", "2.wav"]
    digests = first["digest"][:]
    assert digests[0] == digests[2] != digests[1]
    assert keep_readable(first, memory=memory, workers=workers)["digest"][:] == digests
    assert len(read) == 3
    (tmp_path / "c" / "1.wav").write_bytes(b"")
    with pytest.raises(AudioDecodingError, match=r"1 of 3 audio files(.|\n)*1\.wav: the file is empty"):
        keep_readable(rows, memory=memory, workers=workers)
    assert keep_readable(rows, on_error="skip", memory=memory, workers=workers)["file_name"][:] == ["0.wav", "2.wav"]
    assert read[3:] == ["1.wav"]
    keep_readable(rows.select([0]), memory=None)
    assert read[4:] == ["0.wav"]


def test_progress_and_more_files_than_are_written_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(readable, "AT_A_TIME", 2)
    seen = []
    rows = keep_readable(
        corpus(tmp_path / "c", [0.1] * 5), memory=tmp_path / "m", progress=lambda *given: seen.append(given)
    )
    assert len(rows) == 5
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_content_without_a_file(tmp_path):
    rows = corpus(tmp_path / "c", [0.1])
    content = (tmp_path / "c" / "0.wav").read_bytes()
    inside = rows.map(lambda row: {"audio": {"path": "inside.wav", "bytes": content}})
    assert keep_readable(inside, memory=tmp_path / "m")["digest"][:] == keep_readable(rows, memory=None)["digest"][:]


@pytest.mark.parametrize("damage", ["folder", "no database"])
def test_a_memory_that_cannot_be_used_is_said(tmp_path, caplog, damage):
    memory = tmp_path / "m"
    memory.mkdir() if damage == "folder" else memory.write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING):
        assert len(keep_readable(corpus(tmp_path / "c", [0.1]), memory=memory)) == 1
    assert "cannot remember which files are sound" in caplog.text


def test_copies_and_speakers_of_two_splits_are_named(tmp_path, caplog):
    train = keep_readable(corpus(tmp_path / "train", [0.1, 0.2], ["ann", "-"]), memory=None)
    dev = keep_readable(corpus(tmp_path / "dev", [0.3, 0.4], ["bea", "-"]), memory=None)
    evaluation = keep_readable(corpus(tmp_path / "eval", [0.5, 0.2, 0.6], ["ann", "-", "-"]), memory=None)
    with caplog.at_level(logging.WARNING):
        warn_of_leaks({"train": train, "dev": dev})
        assert not caplog.text
        warn_of_leaks({"train": train, "dev": dev, "eval": evaluation})
    assert "1 of 3 files of eval are copies of files of train, such as 1.wav" in caplog.text
    assert "train and eval share 1 speakers, such as ann" in caplog.text
    assert "dev" not in caplog.text
