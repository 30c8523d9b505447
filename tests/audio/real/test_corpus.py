"""The corpus of real speech, built from packages that the tests write: whole or absent, fair to both classes."""

import csv
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from hf_neuroplastic.audio import load_asvspoof2019, load_audio
from hf_neuroplastic.audio.real import sources, synthesizers
from hf_neuroplastic.audio.real.attacks import ATTACKS, Attack, linear_prediction, mel_griffin_lim
from hf_neuroplastic.audio.real.channel import coded, finished, matched
from hf_neuroplastic.audio.real.corpus import write_real_corpus
from hf_neuroplastic.audio.real.signals import RATE, is_wide, levels, long_term_spectra, noise, speech_level, trim
from hf_neuroplastic.audio.real.sources import VOICES, Voice, fetch, packages_of, recordings_of, texts_of

PEOPLE = tuple(
    Voice(f"{split}_{kind}", split, "en", 3, "prompts", f"{split}_{kind}/*.ogg", "nobody", "CC0", narrow=kind == "old")
    for split in ("train", "dev", "eval")
    for kind in ("new", "old")
)


def speech(seed, seconds=1.2):
    """Noise with the envelope of syllables, silence around it."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    return np.pad(rng.normal(0, 0.1, len(time)) * (1.1 + np.sin(20 * time)), RATE // 2)


def said(rng, text, language):
    return speech(int(rng.integers(1000)), 0.8 + 0.01 * len(text)), "robot"


FORGERIES = {
    "A01": Attack("LPC", {"train": 4, "dev": 2}, convert=linear_prediction),
    "A02": Attack("a robot", {"train": 2, "eval": 4}, speak=said, licence="CC0"),
}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of unpacked packages, and nothing to install."""
    monkeypatch.setattr("hf_neuroplastic.audio.real.corpus.require_synthesizers", lambda: None)
    folder = tmp_path / "packages"
    for number, voice in enumerate(PEOPLE):
        place = folder / "prompts" / voice.name
        place.mkdir(parents=True)
        for index in range(5):
            soundfile.write(place / f"{index}.ogg", speech(10 * number + index), RATE)
        soundfile.write(place / "silence.ogg", np.zeros(RATE), RATE)
    stamps = folder / sources.TEXTS / "usr" / "stamps" / "birds"
    stamps.mkdir(parents=True)
    (stamps / "owl.txt").write_text("An owl at night.\nfr.utf8=Un hibou dans la nuit.\n", encoding="utf-8")
    words = folder / "prompts" / "usr" / "share" / "doc" / "prompts"
    words.mkdir(parents=True)
    (words / "copyright").write_text("Everybody may.")
    return folder


def build(root, packages, **changes):
    options = {"sources": packages, "voices": PEOPLE, "attacks": FORGERIES, "coded": lambda samples, narrow: samples}
    return write_real_corpus(root, **options | changes)


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_corpus_loads_and_names_its_sources(tmp_path, packages):
    root = build(tmp_path / "corpus", packages)
    counts = {}
    for split in ("train", "dev", "eval"):
        rows = load_asvspoof2019(root, "LA", split, on_error="raise")
        counts[split] = np.bincount(rows["label"][:]).tolist()
        assert {who for who, label in zip(rows["speaker"], rows["label"], strict=True) if label == 0} == {
            f"{split}_new",
            f"{split}_old",
        }
    assert counts == {"train": [6, 6], "dev": [6, 2], "eval": [6, 4]}
    told = (root / "SOURCES.md").read_text()
    assert all(f"| {voice.name} | {voice.split} |" in told for voice in PEOPLE)
    assert "| A02 | a robot | train, eval | CC0 |" in told
    assert (root / "licences" / "prompts.txt").read_text() == "Everybody may."
    with (root / "utterances.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 30
    conversions = [row for row in table if row["attack"] == "A01"]
    assert all(row["speaker"] == row["channel"] and row["source"].startswith("prompts: ") for row in conversions)
    assert all(row["text"] for row in table if row["attack"] == "A02")


def test_a_seed_gives_one_corpus_and_another_seed_another(tmp_path, packages):
    first, again, other = (
        content(build(tmp_path / str(number), packages, seed=seed)) for number, seed in enumerate((1, 1, 2))
    )
    assert first == again
    assert first.keys() != other.keys()


def test_an_earlier_corpus_is_replaced_and_anything_else_is_left_alone(tmp_path, packages):
    root = build(tmp_path / "corpus", packages)
    small = build(root, packages, share=0.3)
    assert len(list(small.rglob("*.flac"))) == 10  # at least one of each voice and attack
    (root / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        build(root, packages)


def test_nothing_is_left_of_a_corpus_that_fails(tmp_path, packages):
    def broken(samples, narrow):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        build(tmp_path / "corpus", packages, coded=broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages"]


def test_a_synthesizer_that_never_speaks_is_named(tmp_path, packages, caplog):
    def mute(rng, text, language):
        raise OSError("no such voice")

    with pytest.raises(OSError, match=r"A09 \(mute\) failed 201 times"):
        build(tmp_path / "corpus", packages, attacks={"A09": Attack("mute", {"train": 1}, speak=mute)})
    assert caplog.text.count("no such voice") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"share": 0}, "share must be above 0 and at most 1, got 0"),
        ({"share": 1.5}, "share must be above 0"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"voices": [Voice("x", "train", "en", 1, "prompts", "gone/*.ogg", "", "")]}, "prompts has moved the voice x"),
        ({"voices": [Voice("x", "train", "en", 1, "prompts", "*/silence.ogg", "", "")]}, "has moved the voice x"),
    ],
)
def test_bad_arguments(change, words, tmp_path, packages):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        build(tmp_path / "corpus", packages, **change)
    assert not (tmp_path / "corpus").exists()


def test_what_is_not_installed_is_told_as_one_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(synthesizers, "FESTIVAL", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"apt-get install espeak-ng flite festival festvox-kallpc16k .*festvox-ru"
    ):
        write_real_corpus(tmp_path / "corpus", sources=tmp_path / "sources")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="apt-get is not here; run the command on Debian or Ubuntu"):
        fetch("prompts", tmp_path / "sources")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_that_lies_there_is_unpacked_and_a_damaged_one_is_named(tmp_path):
    built, folder = tmp_path / "built", tmp_path / "sources"
    (built / "DEBIAN").mkdir(parents=True)
    (built / "DEBIAN" / "control").write_text(
        "Package: prompts\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: d\n"
    )
    soundfile.write(built / "0.ogg", speech(0), RATE)
    folder.mkdir()
    subprocess.run(["dpkg-deb", "-b", built, folder / "prompts_1%3a1.0_all.deb"], check=True, capture_output=True)
    fetch("prompts", folder)
    assert (folder / "prompts" / "0.ogg").is_file()
    assert sources.version_of("prompts", folder) == "1:1.0"
    fetch("prompts", folder)  # is there
    (folder / "other_1_all.deb").write_bytes((folder / "prompts_1%3a1.0_all.deb").read_bytes()[:500])
    with pytest.raises(OSError, match=r"delete .*other_1_all\.deb to fetch it again"):
        fetch("other", folder)
    assert not (folder / "other").exists()


def test_sentences_and_recordings_of_stamps(packages):
    assert texts_of(packages, "fr", bool) == ["Un hibou dans la nuit."]
    assert texts_of(packages, "en", bool) == ["An owl at night."]
    place = packages / sources.TEXTS / "usr" / "stamps" / "birds"
    soundfile.write(place / "owl_desc_fr.ogg", speech(0), RATE)
    voice = next(voice for voice in VOICES if voice.name == "tux_fr")
    (found,) = recordings_of(voice, packages)
    assert found.text == "Un hibou dans la nuit."


def test_no_person_speaks_in_two_splits_and_eval_has_attacks_of_its_own():
    assert len({voice.name for voice in VOICES}) == len(VOICES)
    of_holder = {}
    for voice in VOICES:
        if "project" not in voice.holder:  # a project's voices are of many people
            of_holder.setdefault(voice.holder, set()).add(voice.split)
    assert all(len(splits) == 1 for splits in of_holder.values())
    only_eval = [name for name, attack in ATTACKS.items() if set(attack.counts) == {"eval"}]
    assert only_eval == ["A07", "A08", "A09", "A10", "A11", "A12"]
    assert all((attack.convert is None) != (attack.speak is None) for attack in ATTACKS.values())
    assert sources.TEXTS in packages_of(VOICES)


def test_silence_is_trimmed_and_noise_is_not_speech():
    samples = speech(0)
    kept = trim(samples, 4.0)
    assert abs(len(kept) - 1.2 * RATE) < 0.1 * RATE
    assert len(trim(samples, 0.5)) == RATE // 2
    assert len(trim(np.zeros(RATE), 4.0)) == 0
    assert len(trim(np.zeros(10), 4.0)) == 0
    assert speech_level(np.pad(kept, RATE)) == pytest.approx(speech_level(kept), rel=0.1)


def test_a_telephone_band_is_not_wide():
    samples = trim(speech(0), 4.0)
    spectrum = np.fft.rfft(samples)
    spectrum[int(len(spectrum) / 2) :] = 0
    assert is_wide(samples)
    assert not is_wide(np.fft.irfft(spectrum, len(samples)))


def test_matching_gives_speech_the_spectrum_and_the_floor_of_another_voice():
    bright, rng = trim(speech(0), 4.0), np.random.default_rng(0)
    dark = np.convolve(bright, [1, 0.6], "same")
    wanted, floor = long_term_spectra([dark])
    before = np.abs(np.log(long_term_spectra([bright])[0] / wanted))[10:250].mean()
    after = np.abs(
        np.log(long_term_spectra([matched(rng, bright, long_term_spectra([bright])[0], wanted, floor)])[0] / wanted)
    )
    assert after[10:250].mean() < 0.5 * before


def test_noise_has_its_spectrum_and_unit_level():
    tilt = -np.linspace(0, 4, 257)
    made = noise(np.random.default_rng(0), 20 * RATE, tilt)
    power = long_term_spectra([made])[0]
    slope = np.log(power[20:240]) - tilt[20:240]
    assert made.std() == pytest.approx(1)
    assert slope.std() < 0.15


def test_finished_recordings_obey_one_law():
    for seed in range(8):
        made = finished(np.random.default_rng(seed), trim(speech(seed), 4.0) * 10.0**seed)
        assert np.abs(made).max() <= 0.98
        assert -31 < 20 * np.log10(speech_level(made)) < -21
        assert levels(made).min() > levels(made).max() - 60  # noise lies under the margins


def test_codecs_keep_length_place_and_band():
    pytest.importorskip("av")
    time = np.arange(RATE + 1) / RATE
    low, high = np.sin(2 * np.pi * 500 * time), np.sin(2 * np.pi * 6000 * time)
    for narrow in (False, True):
        heard = coded(0.5 * low + 0.3 * high, narrow)
        assert len(heard) == len(time)
        middle = slice(2000, -2000)
        kept = [np.abs(np.mean(heard[middle] * np.exp(-2j * np.pi * f * time[middle]))) for f in (500, 6000)]
        assert kept[1] < 0.01 * kept[0] if narrow else kept[1] > 0.4 * kept[0]
        phase = np.angle(
            np.mean(heard[middle] * np.exp(-2j * np.pi * 500 * time[middle]))
            / np.mean(low[middle] * np.exp(-2j * np.pi * 500 * time[middle]))
        )
        assert abs(phase) < 0.35  # 1.8 samples


@pytest.mark.parametrize("convert", [linear_prediction, mel_griffin_lim])
def test_conversions_keep_length_and_envelope(convert):
    samples = trim(speech(0), 4.0)
    made = convert(np.random.default_rng(0), samples)
    assert made.shape == samples.shape
    assert np.isfinite(made).all()
    assert np.corrcoef(levels(made)[4:-4], levels(samples)[4:-4])[0, 1] > 0.5


def test_recordings_of_any_rate_are_read(tmp_path):
    from hf_neuroplastic.audio.real.signals import read

    soundfile.write(tmp_path / "a.wav", speech(0)[:8000], 8000)
    assert len(read(tmp_path / "a.wav")) == 2 * 8000
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), load_audio(tmp_path / "a.wav", RATE))
