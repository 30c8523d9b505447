"""Vocoders: speech taken apart and put together again. Signals [n], frames as in `spectral`."""

from __future__ import annotations

import numpy as np
from scipy import fft
from scipy.signal import get_window

from .spectral import Array, all_pole_filter, inverse_stft, rms, split_frames, stft, to_samples

FRAME_SECONDS = 0.01
LPC_ORDER = 12
PITCH_RANGE_HZ = (60.0, 400.0)
VOICING_THRESHOLD = 0.45


def linear_prediction_vocoder(
    rng: np.random.Generator, speech: Array, sampling_rate: int, order: int = LPC_ORDER
) -> Array:
    """LPC analysis and resynthesis: each frame's envelope excited by impulses at its pitch, or by noise; of unit RMS.

    Source: Atal and Hanauer (1971); autocorrelation method, Hann frames of 20 ms at steps of 10 ms.
    """
    hop, length = round(sampling_rate * FRAME_SECONDS), speech.shape[0]
    coefficients, gain = linear_prediction(split_frames(speech, 2 * hop, hop), order=order)
    pitch, voiced = estimate_pitch(split_frames(speech, 4 * hop, hop), sampling_rate)
    phase = np.cumsum(to_samples(pitch, hop, length)) / sampling_rate
    impulses = np.diff(np.floor(phase), prepend=0.0) * np.sqrt(sampling_rate / to_samples(pitch, hop, length))
    is_voiced = to_samples(voiced.astype(float), hop, length)
    excitation = is_voiced * impulses + (1.0 - is_voiced) * rng.normal(0.0, 1.0, length)
    vocoded = all_pole_filter(excitation * to_samples(gain, hop, length), coefficients, hop)
    return vocoded / rms(vocoded)


def signal_of_magnitudes(rng: np.random.Generator, magnitude: Array, hop: int, length: int, iterations: int) -> Array:
    """A signal [length] whose `stft` at `hop` has about these magnitudes [F, size // 2 + 1]; phases begin as noise.

    Source: Griffin and Lim (1984), section III.
    """
    size = 2 * (magnitude.shape[1] - 1)
    phase = np.exp(2j * np.pi * rng.uniform(size=magnitude.shape))
    for _ in range(iterations):
        estimate = stft(inverse_stft(magnitude * phase, size, hop, length), size, hop)
        phase = estimate / np.maximum(np.abs(estimate), 1e-12)
    return inverse_stft(magnitude * phase, size, hop, length)


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
