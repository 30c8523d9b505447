"""RawBoost (Tak et al. 2022, arXiv 2111.04433): noises of the telephone line, for raw waveforms.

Three noises, with the parameters in common use: convolutive noise, linear and not (LnL); impulses that depend on the signal
(ISD); stationary noise that does not (SSI). Filters are centred, so a window is not delayed. Deviation: bands end at the
Nyquist frequency where that lies below 8 kHz.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, firwin, freqz

from ..decoding import Waveform

Array = NDArray[np.float64]
ORDER = 5  # of the non-linearity of LnL
BANDS = 5  # of a filter
FREQUENCY, WIDTH, TAPS = (20.0, 8000.0), (100.0, 1000.0), (10, 100)  # Hz, Hz, number
GAIN, BIAS = (0.0, 0.0), (5.0, 20.0)  # dB; of the linear part, and how much less of the others
LARGEST_SHARE, IMPULSE_GAIN = 0.1, 2.0  # of samples that ISD touches
SNR = (10.0, 40.0)  # dB, of SSI


def rawboost(samples: Waveform, rate: int, rng: np.random.Generator, *, algorithm: int) -> Waveform:
    """Samples [n] through RawBoost.

    algorithm: 1 LnL, 2 ISD, 3 SSI, 4 all in this order, 5 LnL and ISD, 6 LnL and SSI, 7 ISD and SSI, 8 LnL and ISD side by
    side, summed.
    """
    signal = samples.astype(np.float64)
    if algorithm == 8:
        signal = limited(lnl(signal, rate, rng) + isd(signal, rate, rng))
    else:
        for noise in ALGORITHMS[algorithm]:
            signal = noise(signal, rate, rng)
    return signal.astype(np.float32)


def lnl(signal: Array, rate: int, rng: np.random.Generator) -> Array:
    """The sum over j = 1..ORDER of x^j through a filter of its own, without its mean, the peak limited."""
    low, high = GAIN
    powers = [fftconvolve(signal, notches(rate, rng, (low, high)), mode="same")]
    for order in range(2, ORDER + 1):
        gains = (low - BIAS[0], high - BIAS[1])
        powers.append(fftconvolve(signal**order, notches(rate, rng, gains), mode="same"))
    total = np.sum(powers, axis=0)
    return limited(total - total.mean())


def isd(signal: Array, rate: int, rng: np.random.Generator) -> Array:
    """Impulses at a random share of the samples, each a random multiple of its sample, the peak limited."""
    count = int(signal.size * rng.uniform(0, LARGEST_SHARE))
    places = rng.choice(signal.size, count, replace=False)
    noisy = signal.copy()
    noisy[places] += IMPULSE_GAIN * signal[places] * rng.uniform(-1, 1, count) * rng.uniform(-1, 1, count)
    return limited(noisy)


def ssi(signal: Array, rate: int, rng: np.random.Generator) -> Array:
    """Filtered white noise at a random ratio of signal to noise."""
    noise = fftconvolve(rng.normal(size=signal.size), notches(rate, rng, GAIN), mode="same")
    ratio = np.linalg.norm(signal) / max(np.linalg.norm(noise), np.finfo(float).tiny)
    return signal + noise * ratio / 10 ** (rng.uniform(*SNR) / 20)


ALGORITHMS: dict[int, tuple[Callable[[Array, int, np.random.Generator], Array], ...]] = {
    1: (lnl,),
    2: (isd,),
    3: (ssi,),
    4: (lnl, isd, ssi),
    5: (lnl, isd),
    6: (lnl, ssi),
    7: (isd, ssi),
    8: (lnl, isd),
}


def notches(rate: int, rng: np.random.Generator, gain: tuple[float, float]) -> Array:
    """Coefficients of a filter that stops BANDS random bands, its largest gain drawn between two values in dB."""
    nyquist, filters = rate / 2, np.ones(1)
    for _ in range(BANDS):
        centre, width = rng.uniform(FREQUENCY[0], min(FREQUENCY[1], nyquist)), rng.uniform(*WIDTH)
        low, high = max(centre - width / 2, 1e-3 * nyquist), min(centre + width / 2, (1 - 1e-3) * nyquist)
        taps = (
            int(rng.integers(TAPS[0], TAPS[1] + 1)) | 1
        )  # a filter that passes the Nyquist frequency has an odd number
        filters = np.convolve(firwin(taps, [low, high], fs=rate), filters)
    largest = np.abs(freqz(filters, fs=rate)[1]).max()
    return filters / largest * 10 ** (rng.uniform(min(gain), max(gain)) / 20)


def limited(signal: Array) -> Array:
    """The signal with a peak of at most 1."""
    return signal / max(1.0, np.abs(signal).max(initial=0.0))
