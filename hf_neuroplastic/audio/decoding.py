"""Read any audio file as mono float32 samples at the rate a model wants. Decoding by soundfile (libsndfile)."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

Waveform = NDArray[np.float32]


BLOCK = 1 << 20  # frames


class AudioDecodingError(ValueError):
    """A file exists but holds no usable audio: empty, corrupt, without samples, or with NaN or infinite ones."""


def decode(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> tuple[Waveform, int]:
    """Samples [n], mono, float32, n >= 1, and the sampling rate in Hz of a file; channels are averaged.

    Args:
        source: path of the file, or its content.
        name: what messages call the file; the path by default.

    Raises:
        FileNotFoundError: there is no such file.
        AudioDecodingError: it is empty, not audio libsndfile can read, has no samples, or some are NaN or infinite.
    """
    if isinstance(source, bytes):
        name = name or "<bytes>"
        size = len(source)
        opened: str | io.BytesIO = io.BytesIO(source)
    else:
        name = name or os.fspath(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name}: no such audio file; check the path and that the corpus is unpacked.")
        size = Path(source).stat().st_size
        opened = os.fspath(source)
    if size == 0:
        raise AudioDecodingError(f"{name}: the file is empty (0 bytes); fetch it again or leave it out.")
    try:
        with soundfile.SoundFile(opened) as file:  # by blocks: the length that a header tells may be none, or wrong
            rate, blocks = file.samplerate, []
            while (block := file.read(BLOCK, dtype="float32", always_2d=True)).shape[0]:
                blocks.append(block.mean(axis=1))
        samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
        raise AudioDecodingError(
            f"{name}: not audio that soundfile can read ({error}); fetch it again or leave it out."
        ) from error
    if samples.shape[0] == 0:
        raise AudioDecodingError(f"{name}: the file has no samples; fetch it again or leave it out.")
    if not np.isfinite(samples).all():
        raise AudioDecodingError(f"{name}: the file holds NaN or infinite samples; repair it or leave it out.")
    return samples, int(rate)


def resample(samples: Waveform, rate: int, target_rate: int) -> Waveform:
    """Samples [n] at `rate` Hz to [ceil(n * target_rate / rate)] at `target_rate` Hz, by a polyphase low-pass."""
    for label, value in (("rate", rate), ("target_rate", target_rate)):
        if value <= 0:
            raise ValueError(f"{label} must be a positive number of Hz, got {value}.")
    if rate == target_rate:
        return samples
    divisor = math.gcd(rate, target_rate)
    return resample_poly(samples, target_rate // divisor, rate // divisor).astype(np.float32)


def load_audio(source: str | os.PathLike[str] | bytes, sampling_rate: int, *, name: str | None = None) -> Waveform:
    """Samples [n] of a file, mono float32 at `sampling_rate` Hz; raises as `decode` does."""
    samples, rate = decode(source, name=name)
    return resample(samples, rate, sampling_rate)
