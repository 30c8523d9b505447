"""One way from mouth to file for both classes, so that the way tells nothing.

Silence is trimmed; the band is that of a voice of the split (wide: Vorbis; narrow: 8 kHz and GSM); then G.722 at 64 kbit/s, one
law of loudness, of margins and of additive noise. Speech from text takes the long-term spectrum and the noise floor of a voice
of its split as well, which speech made of recordings has already.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
from scipy.signal import resample_poly

from .signals import BINS, RATE, Array, filtered, noise, smooth, speech_level

MOST_GAIN = 1.7  # nepers, of the filter that matches spectra
MARGIN_SECONDS, SNR_DB, LEVEL_DB = (0.1, 0.3), (22, 40), (-29, -23)
G722_DELAY = 22  # samples


def matched(rng: np.random.Generator, samples: Array, own: Array, speech: Array, floor: Array) -> Array:
    """Samples whose long-term spectrum is turned from `own` to `speech`, on noise of the spectrum `floor`; powers [257]."""
    gain = np.clip(smooth(0.5 * (np.log(speech + 1e-9) - np.log(own + 1e-9))), -MOST_GAIN, MOST_GAIN)
    shaped = filtered(samples, gain - gain.mean())
    level = np.sqrt(max(floor.mean() / speech.mean(), 1e-9))
    return shaped / speech_level(shaped) + level * noise(rng, len(shaped), np.log(floor + 1e-12))


def coded(samples: Array, narrow: bool) -> Array:
    """Through Vorbis, or GSM at 8 kHz, and then G.722."""
    return _g722(_gsm(_loud(samples)) if narrow else _vorbis(_loud(samples)))[: len(samples)]


def finished(rng: np.random.Generator, samples: Array) -> Array:
    """With margins, noise and a level drawn by one law, never clipping."""
    margins = [int(RATE * seconds) for seconds in rng.uniform(*MARGIN_SECONDS, 2)]
    speech = np.pad(samples, margins) / speech_level(samples)
    tilt = -rng.uniform(0, 2) * np.log(np.linspace(0.02, 1, BINS))
    mixed = speech + 10 ** (-rng.uniform(*SNR_DB) / 20) * noise(rng, len(speech), tilt)
    mixed *= 10 ** (rng.uniform(*LEVEL_DB) / 20)
    return mixed * min(1.0, 0.98 / np.abs(mixed).max())


def _loud(samples: Array) -> Array:
    return samples / (np.abs(samples).max() + 1e-9) * 0.7


def _vorbis(samples: Array) -> Array:
    return _through(samples, RATE, "OGG", "VORBIS")


def _gsm(samples: Array) -> Array:
    return resample_poly(_through(_loud(resample_poly(samples, 1, 2)), RATE // 2, "WAV", "GSM610"), 2, 1)


def _through(samples: Array, rate: int, container: str, codec: str) -> Array:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=codec)
    file.seek(0)
    return soundfile.read(file)[0]


def _g722(samples: Array) -> Array:
    import av

    coder, decoder = (av.CodecContext.create("g722", mode) for mode in ("w", "r"))
    for codec in (coder, decoder):
        codec.sample_rate, codec.layout = RATE, "mono"
    coder.format = "s16"
    whole = np.pad(samples, (0, G722_DELAY + len(samples) % 2))
    pcm = (np.clip(whole, -1, 1) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    packets = [*coder.encode(frame), *coder.encode(None)]
    decoded = [part.to_ndarray().reshape(-1) for packet in packets for part in decoder.decode(packet)]
    return np.concatenate(decoded)[G722_DELAY:].astype(np.float64) / 32768
