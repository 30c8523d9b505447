"""Folders of real and fake files: split first, label first, flat."""

import logging
import os

import numpy as np
import pytest
import soundfile

from hf_neuroplastic.audio import load_folder


def write_files(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(400, 0.1), 16000)


@pytest.mark.parametrize(
    ("split", "split_folder", "real", "fake"),
    [
        ("train", "training", "real", "fake"),
        ("dev", "Validation", "Real", "Fake"),
        ("eval", "TESTING", "bona-fide", "spoof"),
        ("eval", "test", "genuine", "Deepfake"),
        ("train", "train", "BonaFide", "SPOOFED"),
    ],
)
def test_split_folders(tmp_path, split, split_folder, real, fake):
    write_files(tmp_path / split_folder, [f"{real}/b.wav", f"{real}/deep/a.FLAC", f"{fake}/c.ogg"])
    (tmp_path / split_folder / real / "notes.txt").write_text("not audio")
    (tmp_path / split_folder / real / "._b.wav").write_text("left by another system")
    rows = load_folder(tmp_path, split)
    assert rows["label"][:] == [0, 0, 1]
    expected = [f"{real}/b.wav", f"{real}/deep/a.FLAC", f"{fake}/c.ogg"]
    assert rows["file_name"][:] == [f"{split_folder}/{name}" for name in expected]
    assert rows[0]["audio"]["path"] == str(tmp_path / split_folder / expected[0])


def test_flat_folders_are_partitioned_by_seed(tmp_path):
    write_files(tmp_path, [f"real/{i:02d}.wav" for i in range(20)] + [f"fake/{i:02d}.wav" for i in range(10)])
    splits = {split: load_folder(tmp_path, split, seed=3) for split in ("train", "dev", "eval")}
    names = [name for rows in splits.values() for name in rows["file_name"][:]]
    assert len(names) == len(set(names)) == 30
    assert {split: rows["label"][:].count(0) for split, rows in splits.items()} == {"train": 14, "dev": 2, "eval": 4}
    assert {split: rows["label"][:].count(1) for split, rows in splits.items()} == {"train": 7, "dev": 1, "eval": 2}
    bona_fide = splits["train"]["file_name"][:14]
    assert bona_fide == sorted(bona_fide)
    again = load_folder(tmp_path, "train", seed=3)["file_name"][:]
    assert again == splits["train"]["file_name"][:]
    assert load_folder(tmp_path, "train", seed=4)["file_name"][:] != again


def test_shares(tmp_path):
    write_files(tmp_path, [f"{label}/{i}.wav" for label in ("real", "fake") for i in range(4)])
    assert len(load_folder(tmp_path, "eval", shares=(0.0, 0.0, 1.0))) == 8
    with pytest.raises(ValueError, match="no audio files for label 'bonafide' in split 'train'"):
        load_folder(tmp_path, "train", shares=(0.0, 0.0, 1.0))
    for shares in [(0.5, 0.5, 0.5), (1.5, -0.5, 0.0)]:
        with pytest.raises(ValueError, match="sum to 1, got"):
            load_folder(tmp_path, "train", shares=shares)


def test_bad_layouts_say_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_folder(tmp_path / "absent")
    (tmp_path / "voices").mkdir()
    with pytest.raises(FileNotFoundError, match=r"label 'bonafide': found folders voices; name one of them real or"):
        load_folder(tmp_path)
    write_files(tmp_path, ["real/a.wav"])
    with pytest.raises(FileNotFoundError, match=r"label 'spoof': found folders real, voices"):
        load_folder(tmp_path)
    (tmp_path / "fake").mkdir()
    with pytest.raises(ValueError, match="no audio files for label"):
        load_folder(tmp_path)
    (tmp_path / "Spoof").mkdir()
    with pytest.raises(ValueError, match=r"\['Spoof', 'fake'\], which mean the same"):
        load_folder(tmp_path)


def test_missing_split_folder(tmp_path):
    write_files(tmp_path / "training", ["real/a.wav", "fake/a.wav"])
    with pytest.raises(FileNotFoundError, match=r"split 'eval': found folders training; name one of them testing"):
        load_folder(tmp_path, "eval")
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'dev', 'eval'\], got 'test'"):
        load_folder(tmp_path, "test")


def test_unreadable_files_are_skipped(tmp_path):
    write_files(tmp_path / "train", ["real/a.wav", "real/b.wav", "fake/a.wav"])
    (tmp_path / "train" / "real" / "a.wav").write_bytes(b"")
    assert load_folder(tmp_path, "train", on_error="skip")["file_name"][:] == ["train/real/b.wav", "train/fake/a.wav"]


SPLITS = ("train", "dev", "eval")


@pytest.mark.parametrize("nesting", ["", "for-norm/", "for-norm/for-norm/"])
def test_label_first_layouts_keep_their_splits_apart(tmp_path, nesting):
    names = [
        f"{nesting}{label}/{split}/{split}{i}.wav" for label in ("Real", "fake") for split in SPLITS for i in range(3)
    ]
    write_files(tmp_path, names)
    for split in SPLITS:
        found = load_folder(tmp_path, split)
        assert sorted(found["file_name"][:]) == sorted(name for name in names if f"/{split}/" in name)
        assert found["label"][:] == [0] * 3 + [1] * 3


def test_splits_in_one_label_folder_only_are_refused(tmp_path):
    write_files(tmp_path, ["real/train/a.wav", "real/test/a.wav", "fake/a.wav"])
    with pytest.raises(FileNotFoundError, match=r"fake has no folder for split 'eval'"):
        load_folder(tmp_path, "eval")


def test_splits_beside_labels_are_refused(tmp_path):
    write_files(tmp_path, ["real/a.wav", "fake/a.wav", "test/real/a.wav"])
    with pytest.raises(ValueError, match=r"splits and of labels side by side \(fake, real, test\)"):
        load_folder(tmp_path, "eval")


def test_links_are_followed_once_and_hidden_folders_are_not(tmp_path, caplog):
    write_files(
        tmp_path / "data", ["train/real/a.wav", "train/fake/a.wav", "train/fake/.trash/a.wav", "train/real/.b.wav"]
    )
    write_files(tmp_path / "store", ["b.wav", "deep/c.wav"])
    real = tmp_path / "data" / "train" / "real"
    os.symlink(tmp_path / "store", real / "alice")
    os.symlink(tmp_path / "store", real / "bob")
    os.symlink(real, tmp_path / "store" / "back")
    os.symlink(tmp_path / "store" / "deep", real / "again")  # comes before the folder that it leads to
    with caplog.at_level(logging.WARNING):
        rows = load_folder(tmp_path / "data", "train")
    expected = ["train/real/a.wav", "train/real/again/c.wav", "train/real/alice/b.wav", "train/fake/a.wav"]
    assert rows["file_name"][:] == expected
    assert rows["speaker"][:] == ["-", "again", "alice", "-"]
    assert "2 hidden files and folders" in caplog.text
    assert "3 links to folders that are listed already" in caplog.text


def test_files_of_other_formats_are_counted(tmp_path, caplog):
    write_files(tmp_path / "train", ["real/a.wav", "fake/vits/a.wav"])
    for name in ("a.m4a", "b.M4A", "README"):
        (tmp_path / "train" / "fake" / name).write_bytes(b"0")
    with caplog.at_level(logging.WARNING):
        rows = load_folder(tmp_path, "train")
    assert rows["attack"][:] == ["-", "vits"]
    assert "3 files that soundfile does not read (2 .m4a, 1 without an ending)" in caplog.text


def test_names_that_are_not_utf8_are_refused_or_left_out_by_name(tmp_path, caplog):
    write_files(tmp_path / "train", ["real/a.wav", "fake/a.wav"])
    os.link(tmp_path / "train/real/a.wav", os.fsencode(tmp_path / "train/real") + b"/caf\xe9.wav")
    for on_error in (None, "raise"):
        with pytest.raises(ValueError, match=r"caf\\xe9\.wav is not UTF-8; rename"):
            load_folder(tmp_path, "train", on_error=on_error)
    with caplog.at_level(logging.WARNING):
        assert len(load_folder(tmp_path, "train", on_error="skip")) == 2
    assert "1 files whose names are not UTF-8" in caplog.text


def test_flat_folders_of_speakers_are_split_with_a_word(tmp_path, caplog):
    write_files(tmp_path, [f"{label}/alice/{i}.wav" for label in ("real", "fake") for i in range(10)])
    with caplog.at_level(logging.WARNING):
        load_folder(tmp_path, "train")
    assert "folders such as alice have files in several splits" in caplog.text
