"""The synthetic corpus: reproducible, whole or absent, in the layout the loader reads; and its signal tools."""

import inspect
import json
import re

import numpy as np
import pytest
import soundfile
from scipy.signal import lfilter

from hf_neuroplastic.audio import load_asvspoof2019, load_audio, write_corpus
from hf_neuroplastic.audio.synthetic.attacks import (
    ATTACKS,
    concatenation,
    flat_pitch,
    griffin_lim,
)
from hf_neuroplastic.audio.synthetic.spectral import (
    all_pole_filter,
    frame_count,
    inverse_stft,
    resonator_coefficients,
    rms,
    split_frames,
    stft,
    track,
)
from hf_neuroplastic.audio.synthetic.synthesis import draw_plan, draw_speaker, glottal_source, record, render
from hf_neuroplastic.audio.synthetic.vocoders import estimate_pitch, linear_prediction

SMALL = {
    "utterances": {"train": 12, "dev": 6, "eval": 16},
    "speakers": {"train": 3, "dev": 2, "eval": 2},
    "seconds": (0.3, 0.4),
}
RATE = 16000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "toy", seed=5, **SMALL)


def read_all(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def durations(root):
    """Lengths in samples of all files: drawn for each utterance, so what repeats random numbers repeats them."""
    return [soundfile.info(path).frames for path in sorted(root.rglob("*.flac"))]


def test_loads_back_balanced_with_every_file_sound(corpus):
    for split, count in SMALL["utterances"].items():
        rows = load_asvspoof2019(corpus, "LA", split, on_error="raise")
        assert rows["label"][:] == [0, 1] * (count // 2)
        lengths = [load_audio(row["audio"]["path"], RATE).shape[0] for row in rows]
        assert min(lengths) >= 0.3 * RATE
        assert max(lengths) <= 0.4 * RATE


def test_evaluation_holds_unseen_speakers_and_one_unseen_attack(corpus):
    rows = {split: load_asvspoof2019(corpus, "LA", split) for split in SMALL["utterances"]}
    speakers = {split: set(part["speaker"][:]) for split, part in rows.items()}
    attacks = {split: set(part["attack"][:]) - {"-"} for split, part in rows.items()}
    assert not speakers["train"] & speakers["dev"]
    assert not (speakers["train"] | speakers["dev"]) & speakers["eval"]
    assert attacks == {"train": {"A01", "A02", "A03"}, "dev": {"A01", "A02", "A03"}, "eval": set(ATTACKS)}


def test_same_seed_same_bytes(corpus, tmp_path):
    again = write_corpus(tmp_path / "again", seed=5, **SMALL)
    assert read_all(again) == read_all(corpus)
    other = write_corpus(tmp_path / "other", seed=6, **SMALL)
    assert all(a != b for a, b in zip(durations(corpus), durations(other), strict=True))


def test_no_two_utterances_share_their_random_numbers(corpus):
    assert len(set(durations(corpus))) == sum(SMALL["utterances"].values())


def test_default_arguments_are_balanced_over_attacks():
    defaults = {name: p.default for name, p in inspect.signature(write_corpus).parameters.items()}
    assert all(count % 8 == 0 for count in defaults["utterances"].values())
    assert set(defaults["speakers"]) == set(defaults["utterances"]) == {"train", "dev", "eval"}


def test_progress_counts_every_utterance_once(tmp_path):
    calls = []
    write_corpus(tmp_path / "toy", **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 34) for done in range(1, 35)]


def test_level_and_peak_do_not_depend_on_the_class(corpus):
    rows = load_asvspoof2019(corpus, "LA", "eval")
    levels = [20 * np.log10(rms(soundfile.read(row["audio"]["path"])[0])) for row in rows]
    assert min(levels) > -30.5
    assert max(levels) < -21.5
    assert max(np.abs(soundfile.read(row["audio"]["path"])[0]).max() for row in rows) < 0.99


def test_failure_leaves_nothing(tmp_path):
    def fail(done, total):
        if done == 15:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_corpus(tmp_path / "toy", **SMALL, progress=fail)
    assert list(tmp_path.iterdir()) == []
    write_corpus(tmp_path / "toy", seed=1, **SMALL)
    before = read_all(tmp_path / "toy")
    with pytest.raises(RuntimeError, match="stopped"):
        write_corpus(tmp_path / "toy", seed=2, **SMALL, progress=fail)
    assert read_all(tmp_path / "toy") == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_replaces_its_own_corpus_and_an_empty_folder(tmp_path):
    (tmp_path / "toy").mkdir()
    write_corpus(tmp_path / "toy", seed=1, **SMALL)
    write_corpus(tmp_path / "toy", seed=2, **SMALL)
    settings = json.loads((tmp_path / "toy" / "neuroplastic_corpus.json").read_text())
    assert settings["seed"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_refuses_what_is_not_its_own(tmp_path):
    (tmp_path / "LA").mkdir()
    with pytest.raises(FileExistsError, match=r"other files than an earlier corpus made here: LA"):
        write_corpus(tmp_path, **SMALL)
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "neuroplastic_corpus.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        write_corpus(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is a file"):
        write_corpus(tmp_path / "thesis.txt", **SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"utterances": {"train": 8}}, "utterances must give at least 2 for each of ['train', 'dev', 'eval']"),
        ({"utterances": {"train": 8, "dev": 1, "eval": 8}}, "utterances must give at least 2"),
        ({"speakers": {"train": 0, "dev": 1, "eval": 1}}, "speakers must give at least 1"),
        ({"speakers": {"train": 101, "dev": 1, "eval": 1}}, "speakers must be at most 100"),
        ({"seconds": (2.0, 1.0)}, "seconds must be (shortest, longest)"),
        ({"seconds": (0.1, 1.0)}, "0.25 <= shortest"),
        ({"snr_db": (30.0, 10.0)}, "snr_db must be (lowest, highest)"),
        ({"sampling_rate": 4000}, "sampling_rate must be at least 8000 Hz"),
    ],
)
def test_bad_arguments(tmp_path, change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        write_corpus(tmp_path / "toy", **{**SMALL, **change})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("make", [render, *ATTACKS.values()])
def test_every_utterance_is_finite_of_unit_level_and_of_its_length(make, rate):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        speaker, length = draw_speaker(rng), round(0.31 * rate) + seed
        dry = make(rng, speaker, draw_plan(rng, speaker, length, rate), length, rate)
        assert dry.shape == (length,)
        assert rms(dry) == pytest.approx(1.0, abs=1e-9)
        wet = record(rng, dry, rate, (20.0, 40.0))
        assert wet.shape == (length,)
        assert np.abs(wet).max() <= 0.98 + 1e-12


def pitch_movement(speech):
    """Median change of the estimated pitch between frames 10 ms apart, in octaves."""
    pitch, _ = estimate_pitch(split_frames(speech, 1024, 160), RATE)
    return np.median(np.abs(np.diff(np.log2(pitch))))


def test_flat_pitch_is_flat_and_natural_pitch_is_not():
    speaker = draw_speaker(np.random.default_rng(0))
    plan = draw_plan(np.random.default_rng(1), speaker, 2 * RATE, RATE)
    assert pitch_movement(flat_pitch(np.random.default_rng(2), speaker, plan, 2 * RATE, RATE)) < 1e-3
    assert pitch_movement(render(np.random.default_rng(2), speaker, plan, 2 * RATE, RATE)) > 1e-2


def test_concatenation_only_reorders():
    speaker = draw_speaker(np.random.default_rng(0))
    plan = draw_plan(np.random.default_rng(1), speaker, RATE, RATE)
    natural = render(np.random.default_rng(2), speaker, plan, RATE, RATE)
    forged = concatenation(np.random.default_rng(2), speaker, plan, RATE, RATE)
    assert not np.array_equal(natural, forged)
    np.testing.assert_array_equal(np.sort(natural), np.sort(forged))


def test_griffin_lim_keeps_magnitudes_roughly_and_loses_phase():
    speaker = draw_speaker(np.random.default_rng(0))
    plan = draw_plan(np.random.default_rng(1), speaker, RATE, RATE)
    natural = render(np.random.default_rng(2), speaker, plan, RATE, RATE)
    forged = griffin_lim(np.random.default_rng(2), speaker, plan, RATE, RATE)
    assert abs(np.corrcoef(natural, forged)[0, 1]) < 0.3
    spectra = [np.log(np.abs(stft(x, 960, 240)) + 1e-3).ravel() for x in (natural, forged)]
    assert np.corrcoef(*spectra)[0, 1] > 0.8


def test_attacks_are_those_that_were_asked_for(tmp_path):
    size = {"train": 4, "dev": 4, "eval": 4}
    root = write_corpus(tmp_path / "c", utterances=size, attacks={split: ["A04", "A02"] for split in size})
    for split in size:
        assert sorted(load_asvspoof2019(root, "LA", split)["attack"]) == ["-", "-", "A02", "A04"]
    with pytest.raises(ValueError, match="attacks must name some of"):
        write_corpus(tmp_path / "d", attacks={**{split: ["A01"] for split in size}, "eval": ["A09"]})


def test_glottal_source_has_the_asked_period():
    speaker = draw_speaker(np.random.default_rng(0))
    still = type(speaker)(**{**vars(speaker), "jitter": 0.0, "shimmer": 0.0, "breath": 0.0})
    source = glottal_source(np.random.default_rng(0), still, np.full(RATE, 125.0), RATE)
    np.testing.assert_allclose(source[128:], source[:-128], atol=1e-9)
    assert abs(source[:12800].mean()) < 0.02


@pytest.mark.parametrize("length", [1, 159, 160, 161, 5003])
def test_stft_inverts_and_unit_filter_is_the_identity(length):
    x = np.random.default_rng(0).normal(size=length)
    np.testing.assert_allclose(inverse_stft(stft(x, 640, 160), 640, 160, length), x, atol=1e-12)
    np.testing.assert_allclose(all_pole_filter(x, np.ones((frame_count(length, 160), 1)), 160), x, atol=1e-12)


def test_all_pole_filter_equals_direct_recursion():
    x = np.random.default_rng(0).normal(size=4000)
    coefficients = resonator_coefficients(np.array([[500.0, 1500.0]]), np.array([200.0, 250.0]), RATE)
    filtered = all_pole_filter(x, np.repeat(coefficients, frame_count(4000, 160), axis=0), 160)
    expected = lfilter([1.0], coefficients[0], x)
    assert rms(filtered - expected) < 1e-3 * rms(expected)


def test_resonators_peak_at_their_frequencies():
    coefficients = resonator_coefficients(np.array([[700.0, 2500.0]]), np.array([60.0, 60.0]), RATE)[0]
    response = 1.0 / np.abs(np.fft.rfft(coefficients, RATE))
    peaks = [i for i in range(1, 7999) if response[i] > response[i - 1] and response[i] > response[i + 1]]
    np.testing.assert_allclose(peaks, [700, 2500], atol=15)


def test_linear_prediction_recovers_the_filter_that_made_the_signal():
    coefficients = resonator_coefficients(np.array([[800.0, 2200.0]]), np.array([600.0, 800.0]), RATE)
    noise = np.random.default_rng(0).normal(size=1 << 15)
    signal = all_pole_filter(noise, np.repeat(coefficients, frame_count(noise.size, 160), axis=0), 160)
    estimated, _ = linear_prediction(signal[None], order=4)
    np.testing.assert_allclose(estimated[0], coefficients[0], atol=0.05)


@pytest.mark.parametrize("hertz", [80.0, 125.0, 250.0])
def test_pitch_of_a_pulse_train(hertz):
    pulses = (np.arange(RATE) % round(RATE / hertz) == 0).astype(float)
    pitch, voiced = estimate_pitch(split_frames(pulses, 1024, 160)[5:-5], RATE)
    np.testing.assert_allclose(pitch, RATE / round(RATE / hertz))
    assert voiced.all()


def test_track_keeps_constants_and_smooths_steps():
    np.testing.assert_allclose(track(np.full((9, 2), 3.0), 5), 3.0, rtol=1e-12)
    step = track(np.repeat([0.0, 1.0], 10), 5)
    assert (np.diff(step) >= -1e-12).all()
    assert 0 < step[9] < 1
