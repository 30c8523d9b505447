"""The forgeries: vocoders and conversions of recordings, and speech from text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..synthetic.spectral import stft
from ..synthetic.vocoders import linear_prediction_vocoder, signal_of_magnitudes
from . import synthesizers
from .signals import RATE, Array
from .synthesizers import Synthesizer

Conversion = Callable[[np.random.Generator, Array], Array]

LPC_ORDER = 18
MEL_BANDS, MEL_SIZE, MEL_HOP, GRIFFIN_LIM_ITERATIONS = 80, 1024, 256, 32


@dataclass(frozen=True)
class Attack:
    """How speech is forged: from recordings by `convert`, or from text by `speak`.

    counts: utterances by split. languages: that the voice speaks; None for all. licence: of the voice.
    """

    title: str
    counts: Mapping[str, int]
    convert: Conversion | None = None
    speak: Synthesizer | None = None
    languages: tuple[str, ...] | None = None
    licence: str = "as the recording"


def world(rng: np.random.Generator, speech: Array) -> Array:
    """WORLD, analysis and synthesis as they are. Source: Morise, Yokomori and Ozawa (2016)."""
    return _world(speech)


def world_moved(rng: np.random.Generator, speech: Array) -> Array:
    """WORLD with another pitch and another vocal tract, drawn up or down."""
    pitch = rng.choice([rng.uniform(0.7, 0.85), rng.uniform(1.2, 1.45)])
    tract = rng.choice([rng.uniform(0.86, 0.93), rng.uniform(1.08, 1.16)])
    return _world(speech, float(pitch), float(tract))


def _world(speech: Array, pitch: float = 1.0, tract: float = 1.0) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pkg_resources, which pyworld imports
        import pyworld

    coarse, times = pyworld.dio(speech, RATE)
    f0 = pyworld.stonemask(speech, coarse, times, RATE)
    envelope, aperiodicity = pyworld.cheaptrick(speech, f0, times, RATE), pyworld.d4c(speech, f0, times, RATE)
    if tract != 1.0:
        bins = np.arange(envelope.shape[1])
        sources = np.minimum(bins / tract, bins[-1])
        envelope = np.ascontiguousarray([np.exp(np.interp(sources, bins, np.log(frame))) for frame in envelope])
    return pyworld.synthesize(f0 * pitch, envelope, aperiodicity, RATE)[: len(speech)]


def linear_prediction(rng: np.random.Generator, speech: Array) -> Array:
    return linear_prediction_vocoder(rng, speech, RATE, order=LPC_ORDER)


def mel_griffin_lim(rng: np.random.Generator, speech: Array) -> Array:
    """Magnitudes out of 80 mel bands, phases by Griffin and Lim."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(MEL_SIZE // 2 + 1, MEL_BANDS, 20, RATE / 2, RATE, norm=None, mel_scale="htk")
    magnitude = np.maximum(np.abs(stft(speech, MEL_SIZE, MEL_HOP)) @ bank @ np.linalg.pinv(bank), 1e-6)
    return signal_of_magnitudes(rng, magnitude, MEL_HOP, len(speech), GRIFFIN_LIM_ITERATIONS)


ATTACKS: dict[str, Attack] = {
    "A01": Attack("WORLD vocoder, copy synthesis", {"train": 150, "dev": 65, "eval": 70}, convert=world),
    "A02": Attack("LPC vocoder, pulses and noise", {"train": 150, "dev": 65}, convert=linear_prediction),
    "A03": Attack("mel spectrogram and Griffin-Lim", {"train": 150, "dev": 65}, convert=mel_griffin_lim),
    "A04": Attack(
        "espeak-ng, formants", {"train": 150, "dev": 65, "eval": 70}, speak=synthesizers.espeak, licence="GPL-3+"
    ),
    "A05": Attack(
        "flite, clustergen and diphones",
        {"train": 140, "dev": 50},
        speak=synthesizers.flite(("slt", "kal16", "awb")),
        languages=("en",),
        licence="MIT-like, Carnegie Mellon University",
    ),
    "A06": Attack("Piper, VITS (neural)", {"train": 150, "dev": 65}, speak=synthesizers.piper, licence="MIT"),
    "A07": Attack("Kokoro 82M (neural)", {"eval": 140}, speak=synthesizers.kokoro, licence="Apache-2.0"),
    "A08": Attack(
        "hibari, distilled (neural)",
        {"eval": 100},
        speak=synthesizers.hibari,
        languages=("en",),
        licence="Apache-2.0",
    ),
    "A09": Attack(
        "festival, diphones and residual LPC",
        {"eval": 110},
        speak=synthesizers.festival({"en": ("kal_diphone", "ked_diphone"), "it": ("lp_diphone", "pc_diphone")}),
        languages=("en", "it"),
        licence="MIT-like (en), GPL-2+ (it)",
    ),
    "A10": Attack(
        "festival, HTS (HMM)",
        {"eval": 70},
        speak=synthesizers.festival({"en": ("cmu_us_slt_arctic_hts",)}),
        languages=("en",),
        licence="BSD-3-Clause",
    ),
    "A11": Attack("voice conversion by WORLD, pitch and formants moved", {"eval": 100}, convert=world_moved),
    "A12": Attack(
        "festival, unit selection",
        {"eval": 60},
        speak=synthesizers.festival({"ru": ("msu_ru_nsh_clunits",)}),
        languages=("ru",),
        licence="BSD-like, Nickolay V. Shmyrev",
    ),
}
