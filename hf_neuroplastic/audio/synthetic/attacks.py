"""Four ways to forge an utterance, each leaving traces of its own.

An attack maps (rng, speaker, plan, length, sampling_rate) to a dry signal [length] of unit RMS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from scipy import fft
from scipy.signal import get_window

from .spectral import Array, all_pole_filter, inverse_stft, rms, split_frames, stft, to_samples
from .synthesis import Plan, Speaker, frame_hop, render

Attack = Callable[[np.random.Generator, Speaker, Plan, int, int], Array]

LPC_ORDER = 12
PITCH_RANGE_HZ = (60.0, 400.0)
VOICING_THRESHOLD = 0.45
UNIT_SECONDS = (0.02, 0.06)
GRIFFIN_LIM_ITERATIONS = 1
GRIFFIN_LIM_HOP_SECONDS = 0.015
MACHINE_OPEN_QUOTIENT = 0.35


def lpc_vocoder(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """LPC analysis and resynthesis: each frame's envelope excited by impulses at its pitch, or by noise.

    Source: Atal and Hanauer (1971); autocorrelation method, Hann frames of 20 ms at steps of 10 ms.
    """
    hop = frame_hop(sampling_rate)
    speech = render(rng, speaker, plan, length, sampling_rate)
    coefficients, gain = linear_prediction(split_frames(speech, 2 * hop, hop), order=LPC_ORDER)
    pitch, voiced = estimate_pitch(split_frames(speech, 4 * hop, hop), sampling_rate)
    phase = np.cumsum(to_samples(pitch, hop, length)) / sampling_rate
    impulses = np.diff(np.floor(phase), prepend=0.0) * np.sqrt(sampling_rate / to_samples(pitch, hop, length))
    is_voiced = to_samples(voiced.astype(float), hop, length)
    excitation = is_voiced * impulses + (1.0 - is_voiced) * rng.normal(0.0, 1.0, length)
    forged = all_pole_filter(excitation * to_samples(gain, hop, length), coefficients, hop)
    return forged / rms(forged)


def griffin_lim(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """Magnitudes of a real spectrogram, phases estimated from noise. Source: Griffin and Lim (1984), section III."""
    hop = round(GRIFFIN_LIM_HOP_SECONDS * sampling_rate)
    size = 4 * hop
    magnitude = np.abs(stft(render(rng, speaker, plan, length, sampling_rate), size, hop))
    phase = np.exp(2j * np.pi * rng.uniform(size=magnitude.shape))
    for _ in range(GRIFFIN_LIM_ITERATIONS):
        estimate = stft(inverse_stft(magnitude * phase, size, hop, length), size, hop)
        phase = estimate / np.maximum(np.abs(estimate), 1e-12)
    forged = inverse_stft(magnitude * phase, size, hop, length)
    return forged / rms(forged)


def flat_pitch(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """The same words on one pitch, every glottal cycle the same, without breath."""
    monotone = replace(plan, f0=np.full_like(plan.f0, plan.f0.mean()))
    machine = replace(speaker, jitter=0.0, shimmer=0.0, breath=0.0, open_quotient=MACHINE_OPEN_QUOTIENT)
    return render(rng, machine, monotone, length, sampling_rate)


def concatenation(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """Units of 20 to 60 ms of the speaker's own speech in another order, cut and joined without any smoothing."""
    speech = render(rng, speaker, plan, length, sampling_rate)
    shortest, longest = (round(seconds * sampling_rate) for seconds in UNIT_SECONDS)
    cuts = np.cumsum(rng.integers(shortest, longest, length // shortest + 1))
    units = np.split(speech, cuts[cuts < length])
    return np.concatenate([units[index] for index in rng.permutation(len(units))])


def linear_prediction(frames: Array, order: int) -> tuple[Array, Array]:
    """Coefficients [F, order + 1] of the whitening filter A and residual RMS [F] of frames [F, size]."""
    size = frames.shape[1]
    power = np.abs(fft.rfft(frames * get_window("hann", size), 2 * size, axis=1)) ** 2
    correlation = fft.irfft(power, 2 * size, axis=1)[:, : order + 1] / size
    correlation[:, 0] = correlation[:, 0] * 1.000001 + 1e-9  # -60 dB of white noise keeps silent frames solvable
    lags = np.abs(np.arange(order)[:, None] - np.arange(order)[None, :])
    solution = np.linalg.solve(correlation[:, lags], correlation[:, 1:, None])[..., 0]
    residual = correlation[:, 0] - np.sum(solution * correlation[:, 1:], axis=1)
    coefficients = np.concatenate([np.ones((frames.shape[0], 1)), -solution], axis=1)
    return coefficients, np.sqrt(np.maximum(residual, 0.0))


def estimate_pitch(frames: Array, sampling_rate: int) -> tuple[Array, Array]:
    """Pitch in Hz [F] and voicing (bool) [F] from the highest peak of each frame's normalised autocorrelation."""
    size = frames.shape[1]
    power = np.abs(fft.rfft(frames * get_window("hann", size), 2 * size, axis=1)) ** 2
    correlation = fft.irfft(power, 2 * size, axis=1)
    shortest, longest = (round(sampling_rate / hertz) for hertz in PITCH_RANGE_HZ[::-1])
    candidates = correlation[:, shortest : longest + 1]
    best = candidates.argmax(axis=1)
    strength = candidates[np.arange(frames.shape[0]), best] / np.maximum(correlation[:, 0], 1e-9)
    return sampling_rate / (best + shortest), strength > VOICING_THRESHOLD


ATTACKS: MappingProxyType[str, Attack] = MappingProxyType(
    {"A01": flat_pitch, "A02": concatenation, "A03": lpc_vocoder, "A04": griffin_lim}
)
