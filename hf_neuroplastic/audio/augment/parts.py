"""The parts of an augmentation, and their description in words: "rawboost:5,codec,noise@.3"."""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import soundfile
from scipy.signal import fftconvolve

from ..decoding import Waveform, resample
from .rawboost import ALGORITHMS, rawboost

Part = Callable[[Waveform, int, np.random.Generator], Waveform]
CODECS = (  # format, subtype, rate in Hz, strongest compression
    ("WAV", "ULAW", 8000, None),
    ("WAV", "ALAW", 8000, None),
    ("WAV", "GSM610", 8000, None),
    ("MP3", "MPEG_LAYER_III", 16000, 0.9),
    ("OGG", "VORBIS", 16000, 1.0),
    ("OGG", "OPUS", 16000, 1.0),
)
DECAY = (0.1, 0.6)  # seconds until the echo of a room is 60 dB weaker
ECHO = (0.05, 0.5)  # energy of the echo, where the direct sound has 1


def codec(samples: Waveform, rate: int, rng: np.random.Generator) -> Waveform:
    """Through a lossy codec of telephone or network, and back."""
    kind, subtype, coded_rate, strongest = CODECS[rng.integers(len(CODECS))]
    level = {} if strongest is None else {"compression_level": float(rng.uniform(0, strongest))}
    file = io.BytesIO()
    soundfile.write(file, resample(samples, rate, coded_rate), coded_rate, format=kind, subtype=subtype, **level)
    file.seek(0)
    return resample(soundfile.read(file, dtype="float32")[0], coded_rate, rate)


def room(samples: Waveform, rate: int, rng: np.random.Generator) -> Waveform:
    """With the echo of a room: noise that decays, after the direct sound."""
    decay = rng.uniform(*DECAY)
    times = np.arange(1, max(2, round(decay * rate))) / rate
    echo = rng.normal(size=times.size) * 10 ** (-3 * times / decay)
    echo *= np.sqrt(rng.uniform(*ECHO)) / np.linalg.norm(echo)
    return (samples + np.pad(fftconvolve(samples, echo), (1, 0))[: samples.size]).astype(np.float32)


def library(samples: Waveform, rate: int, rng: np.random.Generator, *, transforms: tuple[Any, ...]) -> Waveform:
    """Through one of audiomentations' transforms. transforms: pairs of a name and its settings."""
    import audiomentations

    name, settings = transforms[rng.integers(len(transforms))]
    with _global_random(rng):
        return getattr(audiomentations, name)(**settings, p=1.0)(samples=samples, sample_rate=rate)


@contextmanager
def _global_random(rng: np.random.Generator) -> Iterator[None]:
    """Python's and NumPy's global random numbers, seeded from `rng`, and as they were afterwards."""
    states = random.getstate(), np.random.get_state()
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


FILTERS = (
    ("LowPassFilter", {"min_cutoff_freq": 2000.0, "max_cutoff_freq": 7000.0}),
    ("HighPassFilter", {"min_cutoff_freq": 50.0, "max_cutoff_freq": 500.0}),
    ("PeakingFilter", {"min_center_freq": 100.0, "max_center_freq": 6000.0}),
)
# A part of the name, and the probability that a window goes through the part.
PARTS: dict[str, tuple[Part, float]] = {
    **{f"rawboost:{number}": (partial(rawboost, algorithm=number), 1.0) for number in ALGORITHMS},
    "noise": (partial(library, transforms=(("AddColorNoise", {"min_snr_db": 5.0, "max_snr_db": 30.0}),)), 0.5),
    "codec": (codec, 0.5),
    "room": (room, 0.5),
    "filter": (partial(library, transforms=FILTERS), 0.5),
    "gain": (partial(library, transforms=(("Gain", {"min_gain_db": -12.0, "max_gain_db": 6.0}),)), 0.5),
    "mask": (partial(library, transforms=(("TimeMask", {"min_band_part": 0.01, "max_band_part": 0.2}),)), 0.5),
}


@dataclass(frozen=True)
class Augmentation:
    """Parts in their order, each with its probability; see `augmentation`.

    augment = augmentation("rawboost:5,codec")
    distorted = augment(samples, 16000, numpy.random.default_rng(0))
    collator = AudioCollator(feature_extractor, 4.0375, random_crop=True, augment=augment)
    """

    parts: tuple[tuple[str, float], ...]

    def __call__(self, samples: Waveform, rate: int, rng: np.random.Generator) -> Waveform:
        """Samples [n] of float32 at `rate` Hz, distorted: as many, finite, and decided by `rng` alone."""
        distorted = samples
        for name, probability in self.parts:
            if rng.random() < probability:
                distorted = _fitted(PARTS[name][0](distorted.copy(), rate, rng), distorted)
        return distorted


def _fitted(samples: Waveform, before: Waveform) -> Waveform:
    """As many samples as before; those before where a transform came to no numbers."""
    fitted = np.zeros_like(before)
    fitted[: samples.size] = samples[: before.size]
    return fitted if np.isfinite(fitted).all() else before


def augmentation(description: str) -> Augmentation:
    """The augmentation that "rawboost:5,codec,noise" describes: parts by commas, done in this order; "" has none.

    | part | what a window goes through | probability |
    | --- | --- | --- |
    | `rawboost:1` to `rawboost:8` | RawBoost, see `rawboost` (5 is in common use for logical access, 3 for deepfakes) | 1 |
    | `codec` | mu-law, A-law, GSM at 8 kHz, MP3, Vorbis or Opus, by libsndfile | .5 |
    | `room` | the echo of a synthetic room | .5 |
    | `noise` | coloured noise, 5 to 30 dB below the signal (audiomentations) | .5 |
    | `filter` | a low-pass, high-pass or peaking filter (audiomentations) | .5 |
    | `gain` | -12 to 6 dB (audiomentations) | .5 |
    | `mask` | silence for 1 to 20 % of the window (audiomentations) | .5 |

    `codec@.2` gives a part another probability.

    Raises:
        ValueError: a part that is unknown or given twice, or a probability outside 0 to 1, by name.
        ImportError: audiomentations is needed, and not installed.
    """
    parts: list[tuple[str, float]] = []
    for text in description.split(",") if description.strip() else ():
        name, at, given = text.strip().partition("@")
        if name not in PARTS:
            raise ValueError(f"augment has no part {name!r}; its parts are {', '.join(PARTS)}, separated by commas")
        if name in dict(parts):
            raise ValueError(f"augment names the part {name!r} twice")
        parts.append((name, _probability(text.strip(), given) if at else PARTS[name][1]))
        if getattr(PARTS[name][0], "func", None) is library and importlib.util.find_spec("audiomentations") is None:
            raise ImportError(
                f'augment part {name!r} needs audiomentations: pip install "hf-neuroplastic[augment]"',
                name="audiomentations",
            )
    return Augmentation(tuple(parts))


def _probability(text: str, given: str) -> float:
    try:
        probability = float(given)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of {text!r} must be a number between 0 and 1, got {given!r}")
    return probability
