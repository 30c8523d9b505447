"""Tools for recordings of speech: reading, trimming, levels, spectra, noise. Signals [n] at 16 kHz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, firwin2, get_window, resample_poly

from ..decoding import load_audio

Array = NDArray[np.float64]

RATE = 16000
SIZE, HOP = 512, 128
BINS = SIZE // 2 + 1
MARGIN = 320  # samples, kept around speech
QUIET_DB, SILENT_DB = 35, -70  # below the loudest frames; below full scale
NARROW_DB = 75  # by which 5.6 to 6.2 kHz lie below the strongest band where a recording ends there


def read(path: Path) -> Array:
    """Any recording, mono; G.722 and GSM without a header, which libsndfile does not know, by PyAV."""
    if path.suffix not in (".g722", ".gsm"):
        return load_audio(path, RATE).astype(np.float64)
    import av

    with av.open(str(path), format=path.suffix[1:]) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]) / 32768
        return at_rate(samples, stream.rate)


def at_rate(samples: Array, rate: int) -> Array:
    """To 16 kHz."""
    common = int(np.gcd(RATE, rate))
    return samples if rate == RATE else resample_poly(samples, RATE // common, rate // common)


def frames(samples: Array) -> Array:
    """Overlapping frames [F, 512] at steps of 8 ms, F >= 1; the last one is whole."""
    padded = np.pad(samples, (0, max(0, SIZE - len(samples))))
    return np.lib.stride_tricks.sliding_window_view(padded, SIZE)[::HOP]


def levels(samples: Array) -> Array:
    """Of the frames, in dB of full scale [F]."""
    return 10 * np.log10(np.mean(frames(samples) ** 2, axis=1) + 1e-12)


def is_speech(samples: Array) -> NDArray[np.bool_]:
    """Which frames [F] are not silence."""
    level = levels(samples)
    return level > max(np.percentile(level, 98) - QUIET_DB, SILENT_DB)


def trim(samples: Array, longest: float) -> Array:
    """Without the silence at both ends, and at most `longest` seconds; empty where there is no speech."""
    speech = np.flatnonzero(is_speech(samples))
    if not len(speech):
        return samples[:0]
    start, stop = speech[0] * HOP - MARGIN, speech[-1] * HOP + SIZE + MARGIN
    return samples[max(0, start) : stop][: int(longest * RATE)]


def speech_level(samples: Array) -> float:
    """Root mean square of the frames that are not silence."""
    held = frames(samples)[is_speech(samples)]
    return float(np.sqrt(np.mean(held**2) + 1e-12)) if len(held) else 1e-6


def powers(samples: Array) -> Array:
    """Power spectra of the frames [F, 257]."""
    return np.abs(np.fft.rfft(frames(samples) * get_window("hann", SIZE), axis=1)) ** 2


def is_wide(samples: Array) -> bool:
    """Whether the speech reaches 6.2 kHz."""
    mean = 10 * np.log10(powers(samples).mean(0) + 1e-14)
    return bool(mean[180:200].mean() > mean.max() - NARROW_DB)


def long_term_spectra(recordings: list[Array]) -> tuple[Array, Array]:
    """Power of the speech [257], and of the quietest tenth of the frames [257], relative to the level of the speech."""
    speech, floor = [], []
    for samples in recordings:
        power, level = powers(samples) / speech_level(samples) ** 2, levels(samples)
        speech.append(power[is_speech(samples)].mean(0) if is_speech(samples).any() else power.mean(0))
        floor.append(power[level <= np.percentile(level, 10)].mean(0))
    return np.mean(speech, 0), np.median(floor, 0)


def smooth(values: Array) -> Array:
    """Values [257] averaged over half an octave around each bin."""
    lows = np.maximum(0, np.arange(BINS) / 1.19 - 1).astype(int)
    highs = np.minimum(BINS, np.arange(BINS) * 1.19 + 2).astype(int)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[highs] - sums[lows]) / (highs - lows)


def filtered(samples: Array, log_gain: Array) -> Array:
    """By a linear-phase filter with the amplitudes exp(log_gain) [257]."""
    return fftconvolve(samples, firwin2(BINS, np.linspace(0, 1, BINS), np.exp(log_gain)), "same")


def noise(rng: np.random.Generator, length: int, log_power: Array) -> Array:
    """Of unit RMS, with the power spectrum exp(log_power) [257]."""
    made = filtered(rng.normal(size=length + SIZE), 0.5 * (log_power - log_power.max()))[BINS - 1 :][:length]
    return made / (made.std() + 1e-9)
