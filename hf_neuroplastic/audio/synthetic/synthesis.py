"""Speech-like utterances by the source-filter model: a glottal pulse train and noise through moving formants.

Fant (1960), "Acoustic Theory of Speech Production"; glottal pulse of Klatt and Klatt (1990), eq. 1 (KLGLOTT88), vowel
formants of Peterson and Barney (1952), means of their male speakers. Nothing here is meant to be understood: it is
audio with the structure of speech (pitch, jitter, shimmer, breath, formant transitions, bursts, pauses, rooms), made
in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.signal import fftconvolve

from .spectral import Array, all_pole_filter, frame_count, resonator_coefficients, rms, to_samples, track

FRAME_SECONDS = 0.01
VOWELS_HZ = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    dtype=float,
)
HIGHER_FORMANTS_HZ = (3300.0, 3750.0)
BANDWIDTHS_HZ = np.array([70.0, 90.0, 130.0, 200.0, 250.0])


@dataclass(frozen=True)
class Speaker:
    """One voice: pitch in Hz, vocal-tract scale (1 = adult male), shares (of a period, of amplitude), pitch range in
    octaves.
    """

    f0: float
    tract: float
    jitter: float
    shimmer: float
    breath: float
    open_quotient: float
    pitch_range: float


@dataclass(frozen=True)
class Plan:
    """What is said and how, every 10 ms: all tracks [F], formants [F, 5] in Hz, f0 and friction_hz in Hz, the rest
    gains.
    """

    f0: Array
    voicing: Array
    friction: Array
    friction_hz: Array
    formants: Array


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A random voice; tract scale follows pitch loosely, as in people."""
    height = rng.uniform()
    return Speaker(
        f0=95.0 * 2.0 ** (1.15 * height + rng.normal(0.0, 0.08)),
        tract=float(0.92 + 0.22 * height + rng.normal(0.0, 0.03)),
        jitter=rng.uniform(0.01, 0.03),
        shimmer=rng.uniform(0.04, 0.12),
        breath=rng.uniform(0.08, 0.25),
        open_quotient=rng.uniform(0.5, 0.75),
        pitch_range=rng.uniform(0.08, 0.2),
    )


def draw_plan(rng: np.random.Generator, speaker: Speaker, length: int, sampling_rate: int) -> Plan:
    """A random sequence of syllables for `length` samples: consonant (none, pause, burst or hiss), then a vowel."""
    count = frame_count(length, frame_hop(sampling_rate))
    voicing, friction = np.zeros(count), np.zeros(count)
    friction_hz = np.full(count, 2500.0)
    formants = np.empty((count, 5))
    formants[:, 3:] = HIGHER_FORMANTS_HZ
    start = 0
    while start < count:
        vowel_start = start + int(rng.integers(3, 9))
        vowel_end = vowel_start + int(rng.integers(7, 22))
        kind = rng.choice(4, p=(0.35, 0.15, 0.2, 0.3))
        consonant = slice(max(vowel_start - 2, start) if kind == 2 else start, vowel_start)
        voicing[start:vowel_start] = 0.35 if kind == 0 else 0.0
        friction[consonant] = (0.0, 0.0, rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.4))[kind]
        friction_hz[start:vowel_start] = rng.uniform(1500.0, 5500.0)
        voicing[vowel_start:vowel_end] = rng.uniform(0.6, 1.0)
        formants[start:vowel_end, :3] = VOWELS_HZ[rng.integers(len(VOWELS_HZ))] * rng.normal(1.0, 0.05, 3)
        start = vowel_end
    octaves = np.linspace(0.12, -0.12, count) + track(rng.normal(0.0, 1.0, count), 20) * 3.5 * speaker.pitch_range
    return Plan(
        f0=speaker.f0 * 2.0**octaves,
        voicing=track(voicing, 3),
        friction=friction,
        friction_hz=friction_hz,
        formants=track(formants, 7) * speaker.tract,
    )


def frame_hop(sampling_rate: int) -> int:
    """Samples per control frame."""
    return round(sampling_rate * FRAME_SECONDS)


def glottal_source(rng: np.random.Generator, speaker: Speaker, f0: Array, sampling_rate: int) -> Array:
    """Derivative of the glottal flow with cycle-to-cycle jitter and shimmer, and breath while the glottis is open.

    `f0` [n] in Hz for every sample. Flow derivative within one cycle at phase t in [0, open quotient q):
    t/q * (2 - 3 t/q), zero in the closed phase.
    """
    cycles = np.floor(np.cumsum(f0) / sampling_rate).astype(int)
    period_noise = rng.normal(0.0, 1.0, (2, cycles[-1] * 2 + 2))
    phase = np.cumsum(f0 * (1.0 + speaker.jitter * period_noise[0, cycles])) / sampling_rate
    cycles = np.floor(phase).astype(int)
    opening = (phase - cycles) / speaker.open_quotient
    is_open = opening < 1.0
    gain = 1.0 + speaker.shimmer * period_noise[1, cycles]
    pulses = np.where(is_open, opening * (2.0 - 3.0 * opening), 0.0) * gain
    breath = rng.normal(0.0, speaker.breath, f0.shape[0]) * (0.3 + 0.7 * is_open)
    return pulses + breath


def render(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """Dry utterance [length] of unit RMS for a plan."""
    hop = frame_hop(sampling_rate)
    source = glottal_source(rng, speaker, to_samples(plan.f0, hop, length), sampling_rate)
    source *= to_samples(plan.voicing, hop, length)
    highest = 0.47 * sampling_rate
    tract = resonator_coefficients(np.minimum(plan.formants, highest), BANDWIDTHS_HZ, sampling_rate)
    voiced = all_pole_filter(source, tract / tract.sum(axis=1, keepdims=True), hop)
    noise = rng.normal(0.0, 0.3, length) * to_samples(plan.friction, hop, length)
    hiss_hz = np.minimum(plan.friction_hz, highest)[:, None]
    hiss = all_pole_filter(
        np.diff(noise, prepend=0.0), resonator_coefficients(hiss_hz, np.array([900.0]), sampling_rate), hop
    )
    speech = voiced + hiss
    return speech / rms(speech)


def record(rng: np.random.Generator, dry: Array, sampling_rate: int, snr_db: tuple[float, float]) -> Array:
    """Play a dry signal [n] in a small room with background noise and record it at a random level, never clipping.

    The room is a direct path and an exponentially decaying tail (60 dB in 50 to 150 ms); the noise is pink to brown.
    Bona fide and spoofed speech pass here alike, so neither room, noise nor level tells them apart.
    """
    decay = rng.uniform(0.05, 0.15)
    time = np.arange(round(decay * sampling_rate)) / sampling_rate
    room = rng.normal(0.0, 1.0, time.shape[0]) * 10.0 ** (-3.0 * time / decay)
    room *= 10.0 ** (rng.uniform(-20.0, -10.0) / 20.0) / np.sqrt(np.sum(room**2))
    room[0] = 1.0
    wet = fftconvolve(dry, room)[: dry.shape[0]]
    noise = coloured_noise(rng, dry.shape[0], slope=rng.uniform(0.5, 1.2))
    mixed = wet / rms(wet) + noise * 10.0 ** (-rng.uniform(*snr_db) / 20.0)
    level = 10.0 ** (rng.uniform(-30.0, -22.0) / 20.0) / rms(mixed)
    return mixed * min(level, 0.98 / np.abs(mixed).max())


def coloured_noise(rng: np.random.Generator, length: int, slope: float) -> Array:
    """Unit-RMS noise whose amplitude falls as 1/f^slope (0 white, 0.5 pink, 1 brown)."""
    size = fft.next_fast_len(length, real=True)
    spectrum = fft.rfft(rng.normal(0.0, 1.0, size))
    spectrum *= np.arange(1, spectrum.shape[0] + 1) ** -slope
    noise = fft.irfft(spectrum, size)[:length]
    return noise / rms(noise)
