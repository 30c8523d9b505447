"""Batches: padding marked by the mask, crops, rates, workers."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from hf_neuroplastic.audio import AudioCollator, AudioDecodingError


def row(tmp_path, length, *, rate=16000, label=1, seed=0):
    path = tmp_path / f"{length}-{rate}-{seed}.wav"
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, length), rate, subtype="FLOAT")
    return {"audio": {"path": str(path), "bytes": None}, "label": label, "speaker": "LA_0001"}


@pytest.mark.parametrize("return_attention_mask", [True, False])
def test_mask_marks_padding_and_values_equal_the_single_rows(tmp_path, return_attention_mask):
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=return_attention_mask)
    rows = [row(tmp_path, 800, label=0), row(tmp_path, 1600), row(tmp_path, 1)]
    batch = AudioCollator(extractor, min_seconds=0.00006)(rows)
    assert set(batch) == {"input_values", "attention_mask", "labels"}
    assert batch["input_values"].shape == batch["attention_mask"].shape == (3, 1600)
    assert batch["attention_mask"].sum(1).tolist() == [800, 1600, 1]
    assert (batch["input_values"][batch["attention_mask"] == 0] == 0).all()
    assert batch["labels"].tolist() == [0, 1, 1]
    assert batch["labels"].dtype == torch.long
    alone = AudioCollator(extractor, min_seconds=0.00006)(rows[:1])["input_values"][0]
    torch.testing.assert_close(batch["input_values"][0, :800], alone, rtol=0, atol=1e-6)


def test_resamples_to_the_extractors_rate(tmp_path):
    rows = [row(tmp_path, 800, rate=8000), row(tmp_path, 4410, rate=44100)]
    assert AudioCollator(Wav2Vec2FeatureExtractor())(rows)["attention_mask"].sum(1).tolist() == [1600, 1600]


def test_spectrogram_extractor_needs_no_mask(tmp_path):
    extractor = ASTFeatureExtractor(max_length=32, num_mel_bins=40)
    batch = AudioCollator(extractor)([row(tmp_path, 3200), row(tmp_path, 9000)])
    assert set(batch) == {"input_values", "labels"}
    assert batch["input_values"].shape == (2, 32, 40)
    assert batch["input_values"].dtype == torch.float32


def test_rows_without_labels_and_from_bytes(tmp_path):
    with_path = row(tmp_path, 800)
    content = Path(with_path["audio"]["path"]).read_bytes()
    batch = AudioCollator(Wav2Vec2FeatureExtractor())([{"audio": {"path": None, "bytes": content}}])
    assert "labels" not in batch
    assert torch.equal(batch["input_values"], AudioCollator(Wav2Vec2FeatureExtractor())([with_path])["input_values"])


def ramp_row(tmp_path, length=16000):
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(length) / length, 16000, subtype="DOUBLE")
    return {"audio": {"path": str(path), "bytes": None}}


def starts(collator, rows):
    return (collator(rows)["input_values"][:, 0] * 16000).round().int().tolist()


def test_centre_crop_is_the_middle(tmp_path):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    batch = AudioCollator(extractor, max_seconds=0.25, min_seconds=0.001)([ramp_row(tmp_path)])
    expected = torch.arange(6000, 10000) / 16000
    torch.testing.assert_close(batch["input_values"][0], expected, rtol=0, atol=1e-6)
    short = row(tmp_path, 100)
    assert AudioCollator(extractor, max_seconds=0.25, min_seconds=0.001)([short])["input_values"].shape == (1, 100)


def test_random_crop_follows_seed_epoch_and_recording_and_covers_the_file(tmp_path):
    rows = [{**row, "audio": row["audio"]} for row in [ramp_row(tmp_path)]]

    def drawn(seed, epochs=range(64)):
        collator = AudioCollator(
            Wav2Vec2FeatureExtractor(do_normalize=False), max_seconds=0.25, random_crop=True, seed=seed
        )
        found = []
        for collator.epoch in epochs:
            found += starts(collator, rows)
        return found

    first = drawn(1)
    torch.manual_seed(5)
    assert drawn(1) == first
    assert drawn(1, [7]) == [first[7]]
    assert drawn(2) != first
    assert min(first) < 2000
    assert 10000 < max(first) <= 12000


def test_a_corpus_elsewhere_has_the_same_windows(tmp_path):
    """A run is repeated by its seed wherever its corpus lies, as the demonstration's in a folder of any name."""
    drawn = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
        collator = AudioCollator(extractor, max_seconds=0.01, random_crop=True)
        drawn.append(collator([ramp_row(folder)])["input_values"])
    assert torch.equal(*drawn)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(tmp_path, context):
    rows = [row(tmp_path, 800 + 10 * i, seed=i) for i in range(6)]
    collator = AudioCollator(Wav2Vec2FeatureExtractor(), max_seconds=0.04, min_seconds=0.001, random_crop=True)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=2, collate_fn=collator, num_workers=2, multiprocessing_context=context
    )
    batches = list(loader)
    assert [tuple(batch["input_values"].shape) for batch in batches] == [(2, 640)] * 3


def test_pickles_with_its_settings():
    collator = AudioCollator(Wav2Vec2FeatureExtractor(), max_seconds=1.5, random_crop=True)
    copy = pickle.loads(pickle.dumps(collator))
    assert (copy.max_seconds, copy.random_crop) == (1.5, True)


def test_errors_name_the_cause(tmp_path):
    with pytest.raises(ValueError, match="max_seconds must be positive, or None, got 0"):
        AudioCollator(Wav2Vec2FeatureExtractor(), max_seconds=0)
    collator = AudioCollator(Wav2Vec2FeatureExtractor())
    with pytest.raises(KeyError, match="remove_unused_columns=False"):
        collator([{"label": 0}])
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"")
    with pytest.raises(AudioDecodingError, match=r"broken\.flac"):
        collator([{"audio": {"path": str(broken), "bytes": None}}])


@pytest.mark.parametrize("lengths", [(1,), (50, 390), (5, 16000)])
@pytest.mark.parametrize("extractor", [Wav2Vec2FeatureExtractor(), ASTFeatureExtractor(num_mel_bins=16, max_length=32)])
def test_clips_shorter_than_a_frame_are_repeated(tmp_path, extractor, lengths):
    batch = AudioCollator(extractor)([row(tmp_path, length) for length in lengths])
    assert torch.isfinite(batch["input_values"]).all()
    if "attention_mask" in batch:
        assert batch["attention_mask"].sum(1).tolist() == [max(length, 1600) for length in lengths]


def test_decoded_audio_and_paths_are_taken_too(tmp_path):
    stored = row(tmp_path, 3200)
    path = stored["audio"]["path"]
    samples, rate = soundfile.read(path, dtype="float32")
    forms = [stored["audio"], path, {"array": samples, "sampling_rate": rate}]
    collator = AudioCollator(Wav2Vec2FeatureExtractor())
    batches = [collator([{"audio": audio}])["input_values"] for audio in forms]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


@pytest.mark.parametrize(
    ("rows", "words"),
    [([], "at least one row"), ([{"audio": None, "label": 1}, {"audio": None}], "all have a label or none")],
)
def test_batches_that_make_no_sense(tmp_path, rows, words):
    filled = [{**given, "audio": row(tmp_path, 1600)["audio"]} for given in rows]
    with pytest.raises(ValueError, match=words):
        AudioCollator(Wav2Vec2FeatureExtractor())(filled)


@pytest.mark.parametrize("seconds", ["4", float("nan"), -1, 0])
def test_seconds_are_checked(seconds):
    with pytest.raises(ValueError, match="max_seconds must be positive"):
        AudioCollator(Wav2Vec2FeatureExtractor(), max_seconds=seconds)


def test_windows_have_one_length_so_that_no_row_sees_its_neighbours_padding(tmp_path):
    rows = [row(tmp_path, 800), row(tmp_path, 64000, seed=1)]
    collator = AudioCollator(Wav2Vec2FeatureExtractor(), max_seconds=1.0)
    batch = collator(rows)
    assert batch["attention_mask"].all()
    assert torch.equal(batch["input_values"][:1], collator(rows[:1])["input_values"])


def test_augmentation_follows_seed_epoch_and_recording(tmp_path):
    def augment(samples, rate, rng):
        assert (samples.dtype, rate) == (np.float32, 16000)
        return rng.random(samples.shape[0]).astype(np.float32)

    rows = [row(tmp_path, 800, seed=i) for i in range(2)]
    collator = AudioCollator(Wav2Vec2FeatureExtractor(do_normalize=False), 0.1, augment=augment)
    batch = collator(rows)["input_values"]
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(collator(rows[::-1])["input_values"], batch.flip(0))
    collator.epoch = 1
    assert not torch.equal(collator(rows)["input_values"], batch)
