"""Decoding: mono float32 at the asked rate, and one clear error for every kind of bad file."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from hf_neuroplastic.audio import AudioDecodingError, decode, load_audio, resample
from hf_neuroplastic.audio.decoding import load_window


def tone(seconds, rate, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("extension", "tolerance"), [("flac", 2**-15), ("wav", 2**-15), ("ogg", 0.05)])
def test_formats_round_trip(tmp_path, extension, tolerance):
    samples = tone(0.5, 16000)
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, samples, 16000)
    decoded, rate = decode(path)
    assert (rate, decoded.dtype) == (16000, np.float32)
    np.testing.assert_allclose(decoded, samples, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind", "subtype", "rate", "tolerance"),
    [
        ("a.wav", "WAV", "PCM_U8", 8000, 1e-2),
        ("a.wav", "WAV", "PCM_24", 192000, 1e-6),
        ("a.wav", "WAV", "DOUBLE", 11025, 1e-6),
        ("a.wav", "WAV", "ULAW", 8000, 2e-2),
        ("a.wav", "WAV", "ALAW", 8000, 2e-2),
        ("a.flac", "FLAC", "PCM_S8", 44100, 1e-2),
        ("a.aiff", "AIFF", "PCM_16", 22050, 1e-4),
        ("a.au", "AU", "PCM_32", 32000, 1e-6),
        ("wrong.wav", "MP3", "MPEG_LAYER_III", 44100, 5e-2),
        ("wrong.mp3", "FLAC", "PCM_16", 16000, 1e-4),
        ("\u00e9\u97f3 \U0001f3a4.ogg", "OGG", "VORBIS", 48000, 5e-2),
        ("a.opus", "OGG", "OPUS", 48000, 5e-2),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_audio_as_it_comes(tmp_path, name, kind, subtype, rate, tolerance, channels):
    if channels > 2 and kind in ("MP3", "OGG"):
        pytest.skip("libsndfile writes no more than two channels of it")
    path = tmp_path / name
    samples = tone(0.5, rate)
    soundfile.write(path, np.stack([samples] * channels, 1), rate, format=kind, subtype=subtype)
    inner = slice(1000, 7000)
    np.testing.assert_allclose(load_audio(path, 16000)[inner], tone(0.5, 16000)[inner], atol=tolerance + 5e-3)
    window = load_window(path, 16000, 1600, lambda spare: spare // 2)
    np.testing.assert_allclose(window, tone(0.5, 16000)[3200:4800], atol=tolerance + 5e-3)


def test_path_string_and_bytes_agree(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(0.1, 8000), 8000)
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(decode(source)[0], decode(path)[0])


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    left, right = tone(0.1, 16000), tone(0.1, 16000, 1000.0)
    soundfile.write(path, np.stack([left, right], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(decode(path)[0], (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_a_tone(rate):
    resampled = resample(tone(1.0, rate), rate, 16000)
    assert resampled.shape == (16000,)
    assert resampled.dtype == np.float32
    inner = slice(1000, 15000)  # the filter's edges aside
    np.testing.assert_allclose(resampled[inner], tone(1.0, 16000)[inner], atol=5e-3)


def test_resampling_removes_what_would_alias():
    above = resample(tone(1.0, 48000, 10000.0), 48000, 16000)
    assert np.abs(above[1000:15000]).max() < 5e-3


@pytest.mark.parametrize("length", [1, 2, 17])
def test_shortest_files(tmp_path, length):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.full(length, 0.25, dtype=np.float32), 8000)
    assert load_audio(path, 16000).shape == (2 * length,)


@pytest.mark.parametrize(("rate", "target"), [(0, 16000), (16000, -1)])
def test_bad_rates_are_refused(rate, target):
    with pytest.raises(ValueError, match="must be a positive number of Hz, got"):
        resample(tone(0.1, 8000), rate, target)


def encoded(samples, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", **options)
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "corrupt": (b"fLaC" + bytes(range(200)), "not audio that soundfile can read"),
    "text": (b"no sound here", "not audio that soundfile can read"),
    "no samples": (encoded(np.zeros(0)), "no samples"),
    "nan": (encoded(np.array([0.0, np.nan]), subtype="FLOAT"), "NaN or infinite"),
    "infinite": (encoded(np.array([0.0, np.inf]), subtype="FLOAT"), "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(tmp_path, case):
    content, words = BAD_FILES[case]
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    for source, name in ((path, None), (content, str(path))):
        with pytest.raises(AudioDecodingError) as caught:
            load_audio(source, 16000, name=name)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_flac_cut_inside_its_header_is_refused(tmp_path):
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole.read_bytes()[:30])
    with pytest.raises(AudioDecodingError, match=r"cut\.flac"):
        decode(cut)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.flac: no such audio file"):
        decode(tmp_path / "absent.flac")


@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 44101, 48000, 192000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_window_equals_that_part_of_the_whole(tmp_path, suffix, rate, share):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (3 * rate + 7, 2)), rate)
    whole, place = load_audio(path, 16000), []
    window = load_window(path, 16000, 4000, lambda spare: place.append(round(share * spare)) or place[0])
    np.testing.assert_allclose(window, whole[place[0] : place[0] + 4000], rtol=0, atol=1e-6)
    assert load_window(path, 16000, 10**6, place.append).shape == whole.shape


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_window_of_lossy_audio_is_not_silent_at_its_beginning(tmp_path, kind, subtype, channels):
    path = tmp_path / "tone"
    soundfile.write(path, np.stack([tone(3.0, 16000)] * channels, 1), 16000, format=kind, subtype=subtype)
    whole = load_audio(path, 16000)
    for start in range(0, 40000, 1777):
        window = load_window(path, 16000, 2000, lambda _, start=start: start)
        np.testing.assert_allclose(window, whole[start : start + 2000], rtol=0, atol=1e-5)


def test_a_window_costs_what_the_window_costs(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for _ in range(10):
            file.write(np.random.default_rng(0).normal(0, 0.1, (44100 * 12, 2)))
    load_window(path, 16000, 100, lambda spare: spare)
    tracemalloc.start()
    window = load_window(path, 16000, 16000, lambda spare: spare // 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert window.shape == (16000,)
    assert peak < 20 * 44100 * 2 * 4  # 20 of 120 seconds


def with_length(flac, frames):
    """A FLAC file whose header tells another number of samples."""
    content, place = bytearray(flac), 8 + 13
    content[place] = (content[place] & 0xF0) | frames >> 32
    content[place + 1 : place + 5] = struct.pack(">I", frames & 0xFFFFFFFF)
    return bytes(content)


@pytest.mark.parametrize("frames", [0, 2**36 - 1, 60000])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_windows_of_files_whose_header_tells_a_wrong_length(tmp_path, frames, rate):
    path = tmp_path / "noise.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48000), rate)
    whole = load_audio(path, 16000)
    path.write_bytes(with_length(path.read_bytes(), frames))
    window = load_window(path, 16000, 1000, lambda spare: spare)
    np.testing.assert_allclose(window, whole[-1000:], rtol=0, atol=1e-6)


def test_a_rate_that_no_audio_has_is_refused_before_anything_is_allocated(tmp_path):
    content = bytearray(encoded(np.zeros(100)))
    content[24:28] = struct.pack("<I", 2_000_000_011)
    for read in (decode, lambda source: load_window(source, 16000, 10, int)):
        with pytest.raises(AudioDecodingError, match="sampling rate of 2000000011 Hz"):
            read(bytes(content))
