"""Read any audio file, or a window of one, as mono float32 samples at the rate a model wants, by soundfile (libsndfile)."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

Waveform = NDArray[np.float32]
Source = str | os.PathLike[str] | bytes

BLOCK = 1 << 20  # frames
HIGHEST_RATE = 1_000_000  # Hz
LEAD = 10 * 1152  # frames that are decoded before a window of MP3 or OGG: right after a jump mpg123 gives silence
MOST_FRAMES = 1 << 40  # more than half a year; FLAC of unknown length tells 2^63 - 1


class AudioDecodingError(ValueError):
    """A file exists but holds no usable audio: empty, corrupt, without samples, or with NaN or infinite ones."""


def decode(source: Source, *, name: str | None = None) -> tuple[Waveform, int]:
    """Samples [n], mono, float32, n >= 1, and the sampling rate in Hz of a file; channels are averaged.

    Args:
        source: path of the file, or its content.
        name: what messages call the file; the path by default.

    Raises:
        FileNotFoundError: there is no such file.
        AudioDecodingError: the file is empty, not audio that libsndfile can read, has no samples, or some are NaN or infinite.
    """
    with _opened(source, name) as file:
        return np.concatenate(list(_blocks(file))), file.samplerate


def check(source: Source, *, name: str | None = None) -> float:
    """Seconds of audio, all of it decoded block by block; raises as `decode` does."""
    with _opened(source, name) as file:
        return sum(block.shape[0] for block in _blocks(file)) / file.samplerate


def duration(source: Source, *, name: str | None = None) -> float:
    """Seconds of audio as the header tells, or by counting where it tells none; raises as `decode` does."""
    with _opened(source, name) as file:
        told = 0 < file.frames <= MOST_FRAMES
        return (file.frames if told else sum(block.shape[0] for block in _blocks(file))) / file.samplerate


def resample(samples: Waveform, rate: int, target_rate: int) -> Waveform:
    """Samples [n] at `rate` Hz to [ceil(n * target_rate / rate)] at `target_rate` Hz, by a polyphase low-pass."""
    for label, value in (("rate", rate), ("target_rate", target_rate)):
        if value <= 0:
            raise ValueError(f"{label} must be a positive number of Hz, got {value}.")
    if rate == target_rate:
        return samples
    up, down = _ratio(rate, target_rate)
    return resample_poly(samples, up, down).astype(np.float32)


def load_audio(source: Source, sampling_rate: int, *, name: str | None = None) -> Waveform:
    """Samples [n] of a file, mono float32 at `sampling_rate` Hz; raises as `decode` does."""
    samples, rate = decode(source, name=name)
    return resample(samples, rate, sampling_rate)


def load_window(
    source: Source, sampling_rate: int, length: int, place: Callable[[int], int], *, name: str | None = None
) -> Waveform:
    """Up to `length` samples of a file at `sampling_rate` Hz, from sample place(spare) on, equal to that part of `load_audio`.

    Costs about what the window costs, however long the file is: the file is read from a little before the window to a little
    after. A file whose header tells a wrong length is read whole.

    Args:
        place: called with the number of samples at `sampling_rate` that the file has beyond `length`, when there are any.

    Raises:
        As `decode`; NaN and infinite samples are seen in the window only.
    """
    try:
        with _opened(source, name) as file:
            if file.frames > MOST_FRAMES:
                raise _WrongLengthError
            return window_of(_reader(file), file.frames, file.samplerate, sampling_rate, length, place)
    except _WrongLengthError:
        samples, rate = decode(source, name=name)
        return window_of(lambda start, stop: samples[start:stop], len(samples), rate, sampling_rate, length, place)


def window_of(
    read: Callable[[int, int], Waveform],
    frames: int,
    rate: int,
    target_rate: int,
    length: int,
    place: Callable[[int], int],
) -> Waveform:
    """The window of `load_window` out of `frames` samples at `rate` Hz, of which read(start, stop) gives a part."""
    up, down = _ratio(rate, target_rate)
    spare = -(-frames * up // down) - length
    start = place(spare) if spare > 0 else 0
    # resample_poly reaches 10 max(up, down) samples of the upsampled signal to either side, and starts on its own grid.
    margin = 0 if up == down else 10 * max(up, down) // up + 1
    first = max(0, start * down // up - margin) // down * down
    last = min(frames, -(-(start + length) * down // up) + margin)
    offset = start - first // down * up
    return resample(read(first, last), rate, target_rate)[offset : offset + length]


class _WrongLengthError(Exception):
    """The header of a file tells another length than the file has."""


class _File(soundfile.SoundFile):
    """Reads on without a seek after every read, which fails at the end of a FLAC file whose header tells no length."""

    def seekable(self) -> bool:
        return False


def _ratio(rate: int, target_rate: int) -> tuple[int, int]:
    divisor = math.gcd(rate, target_rate)
    return target_rate // divisor, rate // divisor


@contextmanager
def _opened(source: Source, name: str | None) -> Iterator[_File]:
    """The open file; what goes wrong while reading names the file."""
    if isinstance(source, bytes):
        name, size = name or "<bytes>", len(source)
    else:
        name = name or os.fspath(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name}: no such audio file; check the path and that the corpus is unpacked.")
        size = Path(source).stat().st_size
    if size == 0:
        raise AudioDecodingError(f"{name}: the file is empty (0 bytes); fetch it again or leave it out.")
    try:
        with _File(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as file:
            if file.samplerate > HIGHEST_RATE:
                raise _Unusable(f"its header tells a sampling rate of {file.samplerate} Hz")
            yield file
    except _Unusable as error:
        raise AudioDecodingError(f"{name}: {error}; repair the file or leave it out.") from None
    except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
        raise AudioDecodingError(
            f"{name}: not audio that soundfile can read ({error}); fetch it again or leave it out."
        ) from error


class _Unusable(Exception):  # noqa: N818
    """What is wrong with samples that can be read."""


def _blocks(file: _File) -> Iterator[Waveform]:
    """All samples, block by block, whatever length the header tells; at least one."""
    empty = True
    while (block := _mono(file.read(BLOCK, dtype="float32", always_2d=True))).shape[0]:
        empty = False
        yield block
    if empty:
        raise _Unusable("the file has no samples")


def _reader(file: _File) -> Callable[[int, int], Waveform]:
    """read(start, stop) of a file that can be sought in. Raises _WrongLengthError where the file has other samples."""

    def read(start: int, stop: int) -> Waveform:
        first = max(0, start - LEAD) if file.format in ("MP3", "OGG") else start
        try:
            file.seek(first)
            samples = file.read(stop - first, dtype="float32", always_2d=True)[start - first :]
        except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError):
            raise _WrongLengthError from None
        if samples.shape[0] < stop - start or stop <= start:
            raise _WrongLengthError
        return _mono(samples)

    return read


def _mono(samples: NDArray[np.float32]) -> Waveform:
    """[n] from [n, channels]."""
    if not np.isfinite(samples).all():
        raise _Unusable("the file holds NaN or infinite samples")
    return samples.mean(axis=1)
