"""Short-time tools that the synthesiser and its attacks share: frames, overlap-add, time-varying all-pole filters.

Every function works on one mono signal `x` of shape [n] and on frames of shape [F, size], frame k centred on sample k
* hop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import get_window

Array = NDArray[np.float64]


def frame_count(length: int, hop: int) -> int:
    """Number of frames that cover `length` samples, the first centred on sample 0, the last at or after the end."""
    return -(-length // hop) + 1


def split_frames(x: Array, size: int, hop: int) -> Array:
    """Cut `x` [n] into overlapping frames [F, size]; the signal is taken as zero outside."""
    count = frame_count(x.shape[0], hop)
    padded = np.zeros((count - 1) * hop + size)
    padded[size // 2 : size // 2 + x.shape[0]] = x
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]


def overlap_add(frames: Array, hop: int, offset: int, length: int) -> Array:
    """Sum frames [F, size] at steps of `hop` and return `length` samples from `offset` on; `hop` divides size."""
    count, size = frames.shape
    overlap = size // hop
    blocks = np.zeros((count + overlap - 1, hop))
    for index in range(overlap):
        blocks[index : index + count] += frames[:, index * hop : (index + 1) * hop]
    return blocks.reshape(-1)[offset : offset + length]


def stft(x: Array, size: int, hop: int) -> NDArray[np.complex128]:
    """Short-time Fourier transform [F, size // 2 + 1] under a periodic Hann window."""
    return fft.rfft(split_frames(x, size, hop) * get_window("hann", size), axis=1)


def inverse_stft(spectrum: NDArray[np.complex128], size: int, hop: int, length: int) -> Array:
    """Least-squares inverse of `stft` (Griffin and Lim 1984, eq. 6); exact for the transform of a signal."""
    window = get_window("hann", size)
    frames = fft.irfft(spectrum, size, axis=1) * window
    weight = overlap_add(np.broadcast_to(window**2, frames.shape), hop, size // 2, length)
    return overlap_add(frames, hop, size // 2, length) / np.maximum(weight, 1e-8)


def all_pole_filter(x: Array, coefficients: Array, hop: int) -> Array:
    """Filter `x` [n] by 1 / A_k(z) in frame k, cross-fading between frames under Hann windows of 2 * hop samples.

    `coefficients` [F, p + 1] are those of A, the first one 1, with F = frame_count(n, hop). A frame may ring for
    another 2 * hop samples, after which its tail would wrap around: 20 ms at the hop of 10 ms used here, -38 dB for a
    70 Hz formant.
    """
    size = 2 * hop
    window = get_window("hann", size)  # sums to 1 at steps of size / 2
    padded = np.pad(x, hop)  # one frame more on each side, so that the windows sum to 1 at the ends too
    spectrum = fft.rfft(split_frames(padded, size, hop) * window, 2 * size, axis=1)
    response = fft.rfft(np.pad(coefficients, ((1, 1), (0, 0)), mode="edge"), 2 * size, axis=1)
    filtered = fft.irfft(spectrum / response, 2 * size, axis=1)
    return overlap_add(filtered, hop, size // 2 + hop, x.shape[0])


def resonator_coefficients(frequencies: Array, bandwidths: Array, sampling_rate: int) -> Array:
    """Coefficients [F, 2K + 1] of a cascade of K two-pole resonators; frequencies [F, K] and bandwidths [F, K] or [K]
    in Hz.

    Source: Klatt (1980), "Software for a cascade/parallel formant synthesizer", eq. 2, without its gain at 0 Hz.
    """
    radius = np.exp(-np.pi * bandwidths / sampling_rate) * np.ones_like(frequencies)
    linear = -2.0 * radius * np.cos(2.0 * np.pi * frequencies / sampling_rate)
    count, formants = frequencies.shape
    product = np.zeros((count, 2 * formants + 1))
    product[:, 0] = 1.0
    for k in range(formants):
        previous = product.copy()
        product[:, 1:] += linear[:, k, None] * previous[:, :-1]
        product[:, 2:] += radius[:, k, None] ** 2 * previous[:, :-2]
    return product


def track(values: Array, width: int) -> Array:
    """Smooth control tracks [F] or [F, K] along time with a Hann kernel of `width` frames, edges held."""
    if width < 2:
        return values
    kernel = get_window("hann", width + 2, fftbins=False)[1:-1]
    kernel /= kernel.sum()
    columns = values.reshape(values.shape[0], -1)
    padded = np.pad(columns, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0) @ kernel
    return smooth.reshape(values.shape)


def to_samples(values: Array, hop: int, length: int) -> Array:
    """Linear interpolation of a control track [F], one value every `hop` samples, to `length` samples."""
    return np.interp(np.arange(length), np.arange(values.shape[0]) * hop, values)


def rms(x: Array) -> float:
    """Root mean square of a signal."""
    return float(np.sqrt(np.mean(x * x)))
