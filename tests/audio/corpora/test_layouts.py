"""Every layout, written here in small as it is published, is recognised and read; what is wrong with it is told."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from hf_neuroplastic.audio import load_corpus, recognise
from hf_neuroplastic.audio.corpora.layouts import FORMATS, Options, splits_of


def audio(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, 400), 16000)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def asvspoof2019(root):
    for split, suffix, letter in (("train", "trn", "T"), ("dev", "trl", "D"), ("eval", "trl", "E")):
        lines = [f"LA_0001 LA_{letter}_1 - - bonafide", f"LA_0002 LA_{letter}_2 - A01 spoof"]
        write(root / "LA" / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{split}.{suffix}.txt", lines)
        for line in lines:
            audio(root / "LA" / f"ASVspoof2019_LA_{split}" / "flac" / f"{line.split()[1]}.flac")


def asvspoof2021(root, access="LA"):
    lines = {
        "LA": [
            "LA_0009 LA_E_1 alaw ita_tx A07 spoof notrim eval",
            "LA_0009 LA_E_2 none - bonafide bonafide notrim eval",
            "LA_0009 LA_E_3 opus loc_tx A08 spoof notrim progress",
            "LA_0009 LA_E_4 opus loc_tx bonafide bonafide notrim progress",
        ],
        "DF": [
            "LA_0043 DF_E_1 mp3m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder_autoregressive - - - -",
            "LA_0043 DF_E_2 nocodec asvspoof bonafide bonafide notrim eval bonafide - - - -",
        ],
    }[access]
    write(root / "keys" / access / "CM" / "trial_metadata.txt", lines)
    for line in lines:
        audio(root / f"ASVspoof2021_{access}_eval" / "flac" / f"{line.split()[1]}.flac")


def asvspoof5(root):
    for split, folder, letter in (
        ("train", "flac_T", "T"),
        ("dev.track_1", "flac_D", "D"),
        ("eval.track_1", "flac_E_eval", "E"),
    ):
        lines = [
            f"{letter}_4461 {letter}_0000000169 F - - - AC1 A14 spoof -",
            f"{letter}_4462 {letter}_0000000170 M C05 2 7 - bonafide bonafide -",
        ]
        write(root / f"ASVspoof5.{split}.tsv", lines)
        for line in lines:
            audio(root / folder / f"{line.split()[1]}.flac")


def in_the_wild(root):
    write(root / "meta.csv", ["file,speaker,label", "0.wav,Alec Guinness,spoof", '1.wav,"King, Martin",bona-fide'])
    for name in ("0.wav", "1.wav"):
        audio(root / name)


def mlaad(root):
    for language, model in (("de", "vits"), ("it", "xtts")):
        folder = root / "fake" / language / model
        audio(folder / "a.wav")
        write(folder / "meta.csv", ["path|original_file|language", f"./fake/{language}/{model}/a.wav|x.wav|{language}"])
    audio(root / "real" / "de_DE" / "by_book" / "female" / "eva" / "x.wav")


def fake_or_real(root):
    for split in ("training", "validation", "testing"):
        for label in ("real", "fake"):
            audio(root / "for-norm" / "for-norm" / split / label / f"{split}.wav")


def wavefake(root):
    for index in range(20):
        audio(root / "LJSpeech-1.1" / "wavs" / f"LJ001-{index:04d}.wav")
        for vocoder in ("ljspeech_melgan", "ljspeech_waveglow"):
            audio(root / "generated_audio" / vocoder / f"LJ001-{index:04d}_gen.wav")


def folder(root):
    for label in ("real", "fake"):
        for split in ("train", "dev", "test"):
            audio(root / split / label / f"{split}.wav")


def table(root):
    lines = ["Path\tLabel\tAttack\tCodec\tSpeaker\tSplit"]
    for index, split in enumerate(("train", "train", "dev", "dev", "test", "test")):
        kind = ("real", "-", "none") if index % 2 == 0 else ("Fake", "vits", "mp3")
        lines.append("\t".join([f"clips/{index}.wav", kind[0], kind[1], kind[2], f"s{index}", split]))
        audio(root / "clips" / f"{index}.wav")
    write(root / "list.tsv", lines)
    return root / "list.tsv"


# writer, splits that are there, rows of eval: labels, attacks, conditions
LAYOUTS = {
    "asvspoof2019": (asvspoof2019, {"train", "dev", "eval"}, [0, 1], ["-", "A01"], ["-", "-"]),
    "asvspoof2021": (asvspoof2021, {"eval", "progress"}, [1, 0], ["A07", "-"], ["alaw", "none"]),
    "asvspoof5": (asvspoof5, {"train", "dev", "eval"}, [1, 0], ["A14", "-"], ["-", "C05"]),
    "in-the-wild": (in_the_wild, {"eval"}, [1, 0], ["-", "-"], ["-", "-"]),
    "mlaad": (mlaad, {"eval"}, [0, 1, 1], ["-", "vits", "xtts"], ["de", "de", "it"]),
    "fake-or-real": (fake_or_real, {"train", "dev", "eval"}, [0, 1], ["-", "-"], ["-", "-"]),
    "table": (table, {"train", "dev", "eval"}, [0, 1], ["-", "vits"], ["none", "mp3"]),
    "folder": (folder, {"train", "dev", "eval"}, [0, 1], ["-", "-"], ["-", "-"]),
}


def made(name, root):
    return LAYOUTS[name][0](root) or root


def test_every_format_but_those_of_their_own_test_is_here():
    assert set(FORMATS) == {"auto", "wavefake", *LAYOUTS}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognised_and_read(name, tmp_path):
    root = made(name, tmp_path)
    _, splits, labels, attacks, conditions = LAYOUTS[name]
    assert recognise(root) == name
    rows = load_corpus(root, "eval", on_error="raise")
    assert rows["label"][:] == labels
    assert rows["attack"][:] == attacks
    assert rows["condition"][:] == conditions
    assert set(rows.column_names) == {
        "audio",
        "label",
        "file_name",
        "attack",
        "condition",
        "speaker",
        "digest",
        "seconds",
    }
    for split in ("train", "dev", "eval"):
        if split in splits:
            assert set(load_corpus(root, split)["label"]) == {0, 1}
        else:
            with pytest.raises(FileNotFoundError, match=rf"\({name}\) has no split '{split}'; it has eval"):
                load_corpus(root, split)
    assert len(load_corpus(root, "all")) == sum(len(load_corpus(root, split)) for split in splits)


def test_phases_and_parts_of_asvspoof2021(tmp_path):
    asvspoof2021(tmp_path, "LA")
    asvspoof2021(tmp_path, "DF")
    assert load_corpus(tmp_path, "progress")["file_name"][:] == ["LA_E_3", "LA_E_4"]
    rows = load_corpus(tmp_path, "eval", options=Options(access="DF"))
    assert rows["attack"][:] == ["Task1-team20", "-"]
    assert rows["condition"][:] == ["mp3m4a", "nocodec"]


def test_a_sentence_and_what_vocoders_made_of_it_stay_together(tmp_path):
    wavefake(tmp_path)
    assert recognise(tmp_path) == "wavefake"
    splits = {split: load_corpus(tmp_path, split) for split in ("train", "dev", "eval")}
    sentences = {split: {name.split("/")[-1][:10] for name in rows["file_name"]} for split, rows in splits.items()}
    assert sum(map(len, sentences.values())) == 20
    assert {split: (len(rows), rows["label"][:].count(0)) for split, rows in splits.items()} == {
        "train": (42, 14), "dev": (6, 2), "eval": (12, 4)
    }  # fmt: skip
    assert set(splits["train"]["attack"]) == {"-", "ljspeech_melgan", "ljspeech_waveglow"}


def test_corpora_without_real_speech_ask_for_some(tmp_path):
    for index in range(2):
        audio(tmp_path / "fake" / "de" / "vits" / f"{index}.wav")
        audio(tmp_path / "elsewhere" / "de_DE" / f"{index}.wav")
    write(tmp_path / "fake" / "de" / "vits" / "meta.csv", ["path"])
    with pytest.raises(
        FileNotFoundError, match="holds no real speech, which MLAAD has none of; give its folder as real"
    ):
        load_corpus(tmp_path, "eval", "mlaad")
    rows = load_corpus(tmp_path, "eval", "mlaad", options=Options(real=str(tmp_path / "elsewhere")))
    assert rows["condition"][:] == ["de"] * 4


def test_several_variants_are_a_choice(tmp_path):
    fake_or_real(tmp_path)
    (tmp_path / "for-norm").rename(tmp_path / "for-2seconds")
    fake_or_real(tmp_path)
    with pytest.raises(ValueError, match="holds the variants for-norm, for-2sec; choose one of them"):
        load_corpus(tmp_path, "train")
    assert "for-2seconds" in load_corpus(tmp_path, "train", options=Options(variant="for-2sec"))[0]["audio"]["path"]


def test_what_no_layout_fits_is_told_with_what_each_lacks(tmp_path):
    (tmp_path / "things").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        recognise(tmp_path)
    for name in FORMATS[1:]:
        assert f"{name} needs " in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such folder or table"):
        recognise(tmp_path / "absent")
    asvspoof2019(tmp_path)
    asvspoof5(tmp_path)
    with pytest.raises(ValueError, match="has the layouts asvspoof2019 and asvspoof5; choose one"):
        recognise(tmp_path)
    assert len(load_corpus(tmp_path, "eval", "asvspoof5")) == 2
    with pytest.raises(ValueError, match=r"format must be one of .*, got 'kaldi'"):
        load_corpus(tmp_path, "eval", "kaldi")


PROTOCOLS = {
    "asvspoof2019": "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.eval.trl.txt",
    "asvspoof2021": "keys/LA/CM/trial_metadata.txt",
    "asvspoof5": "ASVspoof5.eval.track_1.tsv",
}
FAULTS = {
    "an unknown key": (lambda line: line.replace("bonafide", "genuine"), "the key must be one of"),
    "a file listed twice": (lambda line: f"{line}\n{line}", "is listed twice"),
    "a column too few": (lambda line: line.rpartition(" ")[0], "columns, found"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_lines_that_make_no_sense_are_refused_or_left_out(name, fault, tmp_path, caplog):
    made(name, tmp_path)
    spoil, words = FAULTS[fault]
    path = tmp_path / PROTOCOLS[name]
    text = path.read_text()
    line = next(
        line for line in text.splitlines() if line.split()[1].endswith(("E_1", "E_2", "170")) and "bonafide" in line
    )
    path.write_text(text.replace(line, spoil(line)))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line \d+: .*{words}"):
        load_corpus(tmp_path, "eval")
    with caplog.at_level(logging.WARNING):
        rows = load_corpus(tmp_path, "eval", on_error="skip")
    assert "left out" in caplog.text
    assert len(rows) == (2 if "twice" in fault else 1)


@pytest.mark.parametrize("name", ["asvspoof2019", "asvspoof2021", "asvspoof5", "in-the-wild", "table"])
def test_absent_files_other_letter_case_and_line_ends(name, tmp_path, caplog):
    root = made(name, tmp_path)
    before = load_corpus(root, "eval")
    first, second = (SimpleNamespace(**row) for row in before)
    listing = root if root.is_file() else next(p for p in tmp_path.rglob("*") if p.suffix in (".txt", ".csv", ".tsv") and
                                               first.file_name in p.read_text())  # fmt: skip
    listing.write_bytes(b"\xef\xbb\xbf" + listing.read_text().replace("\n", "\r\n").encode())
    assert load_corpus(root, "eval")["file_name"][:] == before["file_name"][:]
    path = tmp_path / first.audio["path"]
    renamed = path.with_name(path.name.swapcase())
    path.rename(renamed)
    with caplog.at_level(logging.WARNING):
        assert load_corpus(root, "eval")[0]["audio"]["path"] == str(renamed)
    assert "1 files have names in other letter case" in caplog.text
    path = renamed
    audio(path.with_name("extra.flac"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 audio files that .* lists are absent from .*, the first ones"):
        load_corpus(root, "eval")
    with caplog.at_level(logging.WARNING):
        assert load_corpus(root, "eval", on_error="skip")["file_name"][:] == [second.file_name]
    assert "left out: 1 of 2" in caplog.text
    assert ("1 audio files of" in caplog.text) == (name in ("asvspoof2019", "asvspoof5"))


TABLES = {
    "no label": (
        ["path,kind", "a.wav,real"],
        r"needs columns path \(or file, .*\); label \(or class, .*\), or --columns .*; got path, kind",
    ),
    "a label that says nothing": (
        ["path,label", "a.wav,1"],
        "line 2: label '1' is no name of bona fide or spoofed speech",
    ),
    "listed twice": (["file,label", "a.wav,real", "a.wav,real"], "line 3: file a.wav is listed twice"),
    "another width": (["path,label", "a.wav,real,x"], "line 2: expected 2 columns, found 3"),
    "another split": (["path,label,split", "a.wav,real,holdout"], "names the split 'holdout'; the names are training"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_make_no_sense(case, tmp_path):
    lines, words = TABLES[case]
    audio(tmp_path / "a.wav")
    write(tmp_path / "list.csv", lines)
    with pytest.raises(ValueError, match=words):
        load_corpus(tmp_path / "list.csv", "train")


def test_tables_with_other_headings_and_labels(tmp_path):
    audio(tmp_path / "a.wav")
    audio(tmp_path / "b.wav")
    write(tmp_path / "list.csv", ["wav,is_fake,who,split", "a.wav,0,anna,test", "b.wav,1,ben,test"])
    columns = {"path": "wav", "label": "is_fake", "speaker": "who"}
    rows = load_corpus(
        tmp_path / "list.csv", "eval", options=Options(columns=columns, labels={"0": "real", "1": "spoof"})
    )
    assert (rows["file_name"][:], rows["label"][:], rows["speaker"][:]) == (
        ["a.wav", "b.wav"],
        [0, 1],
        ["anna", "ben"],
    )
    for options, words in (
        (Options(columns={"path": "flac"}, labels=None), "has no column 'flac'; it has wav, is_fake, who, split"),
        (Options(columns={"file": "wav"}), "columns may name path, label, .*; got file"),
        (Options(labels={"0": "maybe"}), "labels must mean bonafide or spoof, .*; got 0=maybe"),
        (Options(columns=columns), "label '0' is no name .*; --labels tells what it means"),
    ):
        with pytest.raises(ValueError, match=words):
            load_corpus(tmp_path / "list.csv", "eval", options=options)


def test_a_table_has_the_splits_that_its_column_names(tmp_path):
    for name in "ab":
        audio(tmp_path / f"{name}.wav")
    write(tmp_path / "list.csv", ["path,label,part", "a.wav,real,test", "b.wav,fake,training"])
    options = Options(columns={"split": "part"})
    assert splits_of(tmp_path / "list.csv", options=options) == ["train", "eval"]
    assert load_corpus(tmp_path / "list.csv", "all", options=options)["label"][:] == [1, 0]
    with pytest.raises(FileNotFoundError, match="has no split 'dev'; it has train, eval"):
        load_corpus(tmp_path / "list.csv", "dev", options=options)


def test_an_option_that_means_nothing_to_the_layout_is_refused(tmp_path):
    root = made("in-the-wild", tmp_path)
    with pytest.raises(
        ValueError, match=r"access means something to asvspoof2019, asvspoof2021 only; .* layout in-the-wild"
    ):
        load_corpus(root, "eval", options=Options(access="LA"))


def test_tables_without_splits_keep_speakers_together(tmp_path):
    lines = ["file;label;speaker"]
    for index in range(40):
        audio(tmp_path / f"{index}.wav")
        lines.append(f"{index}.wav;{'real' if index % 2 else 'spoof'};s{index // 4}")
    write(tmp_path / "list.csv", lines)
    speakers = [set(load_corpus(tmp_path / "list.csv", split)["speaker"]) for split in ("train", "dev", "eval")]
    assert list(map(len, speakers)) == [7, 1, 2]
    assert len(set.union(*speakers)) == 10
