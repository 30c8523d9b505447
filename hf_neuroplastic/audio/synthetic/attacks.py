"""Four ways to forge an utterance, each leaving traces of its own.

An attack maps (rng, speaker, plan, length, sampling_rate) to a dry signal [length] of unit RMS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from .spectral import Array, rms, stft
from .synthesis import Plan, Speaker, render
from .vocoders import linear_prediction_vocoder, signal_of_magnitudes

Attack = Callable[[np.random.Generator, Speaker, Plan, int, int], Array]

UNIT_SECONDS = (0.02, 0.06)
GRIFFIN_LIM_ITERATIONS = 1
GRIFFIN_LIM_HOP_SECONDS = 0.015
MACHINE_OPEN_QUOTIENT = 0.35


def lpc_vocoder(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """See `vocoders.linear_prediction_vocoder`."""
    return linear_prediction_vocoder(rng, render(rng, speaker, plan, length, sampling_rate), sampling_rate)


def griffin_lim(rng: np.random.Generator, speaker: Speaker, plan: Plan, length: int, sampling_rate: int) -> Array:
    """Magnitudes of a real spectrogram, phases estimated from noise."""
    hop = round(GRIFFIN_LIM_HOP_SECONDS * sampling_rate)
    magnitude = np.abs(stft(render(rng, speaker, plan, length, sampling_rate), 4 * hop, hop))
    forged = signal_of_magnitudes(rng, magnitude, hop, length, GRIFFIN_LIM_ITERATIONS)
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


ATTACKS: MappingProxyType[str, Attack] = MappingProxyType(
    {"A01": flat_pitch, "A02": concatenation, "A03": lpc_vocoder, "A04": griffin_lim}
)
