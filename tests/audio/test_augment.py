"""Augmentation: decided by the random numbers given and nothing else, and doing what its description says."""

import pickle
import random
import re
import sys

import numpy as np
import pytest
import torch

from hf_neuroplastic.audio.augment import PARTS, augmentation
from hf_neuroplastic.audio.augment.rawboost import isd, limited, lnl, notches, ssi


def speech(n=16000, seed=0, rate=16000):
    """A tone that glides, in noise."""
    times = np.arange(n) / rate
    rng = np.random.default_rng(seed)
    glide = np.sin(2 * np.pi * (200 + 300 * np.sin(3 * times)) * times)
    return (0.3 * glide + 0.02 * rng.normal(size=n)).astype(np.float32)


def always(part):
    return augmentation(f"{part}@1")


@pytest.mark.parametrize("part", PARTS)
def test_same_numbers_same_samples_and_nothing_else_is_touched(part):
    samples = speech()
    before, states = samples.copy(), (random.getstate(), np.random.get_state()[1].tolist())
    one, again, other = (always(part)(samples, 16000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, samples)
    assert np.array_equal(samples, before)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("n", [1, 2, 100, 64600])
@pytest.mark.parametrize("part", PARTS)
def test_length_kind_and_finiteness_are_kept(part, n, rate):
    for samples in (speech(n), np.zeros(n, dtype=np.float32)):
        for seed in range(2):
            distorted = always(part)(samples, rate, np.random.default_rng(seed))
            assert (distorted.shape, distorted.dtype) == (samples.shape, np.float32)
            assert np.isfinite(distorted).all()


@pytest.mark.parametrize("part", ["rawboost:5", "codec", "noise"])
def test_probabilities(part):
    samples, rng = speech(400), np.random.default_rng(0)
    assert augmentation(f"{part}@0")(samples, 16000, rng) is samples
    touched = [not np.array_equal(augmentation(f"{part}@.3")(samples, 16000, rng), samples) for _ in range(200)]
    assert 0.2 < np.mean(touched) < 0.4


def test_parts_follow_each_other():
    samples, rng = speech(), np.random.default_rng(3)
    together = augmentation("rawboost:1@1,gain@1")(samples, 16000, np.random.default_rng(3))
    rng.random()
    first = PARTS["rawboost:1"][0](samples, 16000, rng)
    rng.random()
    assert np.array_equal(together, PARTS["gain"][0](first, 16000, rng))
    assert augmentation("")(samples, 16000, rng) is samples
    assert augmentation(" rawboost:5 , codec@.25").parts == (("rawboost:5", 1.0), ("codec", 0.25))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("rawbost:5", "augment has no part 'rawbost:5'; its parts are rawboost:1,"),
        ("rawboost", "augment has no part 'rawboost'"),
        ("rawboost:9", "augment has no part 'rawboost:9'"),
        ("codec,", "augment has no part ''"),
        ("codec,noise,codec@.2", "augment names the part 'codec' twice"),
        ("codec@1.5", "the probability of 'codec@1.5' must be a number between 0 and 1, got '1.5'"),
        ("codec@", "must be a number between 0 and 1, got ''"),
        ("codec@nan", "must be a number between 0 and 1, got 'nan'"),
    ],
)
def test_descriptions_that_make_no_sense(description, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        augmentation(description)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert augmentation("rawboost:5,codec,room").parts
    with pytest.raises(
        ImportError, match=r'augment part .noise. needs audiomentations: pip install "hf-neuroplastic\[augment'
    ):
        augmentation("codec,noise")


def test_workers_do_the_same():
    copy = pickle.loads(pickle.dumps(augmentation("rawboost:5,noise@1")))
    samples = speech()

    def collate(seeds):
        return torch.from_numpy(np.stack([copy(samples, 16000, np.random.default_rng(seed)) for seed in seeds]))

    here, there = (
        torch.cat(list(torch.utils.data.DataLoader(range(4), 2, collate_fn=collate, num_workers=workers)))
        for workers in (0, 2)
    )
    assert torch.equal(here, there)


@pytest.mark.parametrize("seed", range(5))
def test_impulses_touch_a_share_of_the_samples_in_proportion_to_them(seed):
    signal = 0.1 * np.random.default_rng(9).uniform(0.5, 1.0, 10000)
    noisy = isd(signal, 16000, np.random.default_rng(seed))
    changed = noisy != signal
    assert 0 < changed.mean() <= 0.1
    assert (np.abs(noisy - signal)[changed] <= 2 * np.abs(signal)[changed]).all()
    np.testing.assert_allclose(isd(3 * signal, 16000, np.random.default_rng(seed)), 3 * noisy)  # depends on the signal


@pytest.mark.parametrize("seed", range(5))
def test_stationary_noise_has_a_ratio_between_10_and_40_db(seed):
    signal = speech().astype(float)
    noise = ssi(signal, 16000, np.random.default_rng(seed)) - signal
    assert 10 <= 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm(noise)) <= 40


@pytest.mark.parametrize("seed", range(3))
def test_convolutive_noise_is_nearly_linear_for_weak_signals_and_not_for_strong_ones(seed):
    signal = speech().astype(float)
    signal /= 2 * np.abs(signal).max()

    def deviation(scale):
        one, doubled = (lnl(factor * signal, 16000, np.random.default_rng(seed)) for factor in (scale, 2 * scale))
        return np.linalg.norm(doubled - 2 * one) / np.linalg.norm(doubled)

    assert deviation(1e-4) < 1e-3
    assert deviation(0.5) > 10 * deviation(1e-4)
    assert abs(lnl(signal, 16000, np.random.default_rng(seed)).mean()) < 1e-9


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_filters_stop_bands_and_have_the_gain_asked_for(rate):
    for seed in range(5):
        coefficients = notches(rate, np.random.default_rng(seed), (-6.0, -6.0))
        response = np.abs(np.fft.rfft(coefficients, 1 << 14))
        assert response.max() == pytest.approx(10 ** (-6 / 20), rel=0.02)
        assert response.min() < 0.9 * response.max()
        assert len(coefficients) % 2 == 1  # centred: nothing is delayed


def test_peaks_are_limited_only():
    assert limited(np.array([0.5, -0.2])).tolist() == [0.5, -0.2]
    assert limited(np.array([4.0, -2.0])).tolist() == [1.0, -0.5]


@pytest.mark.parametrize("part", ["codec", "room", "rawboost:1"])
def test_nothing_is_delayed(part):
    samples = speech()
    for seed in range(8):
        distorted = always(part)(samples, 16000, np.random.default_rng(seed))
        spectrum = np.fft.rfft(distorted, 32768) * np.conj(np.fft.rfft(samples, 32768))
        lag = int(np.argmax(np.fft.irfft(spectrum)))
        assert min(lag, 32768 - lag) <= 8


def test_noise_has_a_ratio_between_5_and_30_db():
    samples = speech()
    for seed in range(8):
        noise = always("noise")(samples, 16000, np.random.default_rng(seed)) - samples
        assert 4.9 <= 20 * np.log10(np.linalg.norm(samples) / np.linalg.norm(noise)) <= 30.1
