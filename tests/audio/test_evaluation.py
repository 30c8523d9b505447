"""A recording's score: its own, whatever lies beside it, in windows and whole, by evaluate and by predict."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_model
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from hf_neuroplastic.audio import audio_dataset, evaluation
from hf_neuroplastic.audio.detector import longest_window, require_window
from hf_neuroplastic.audio.detector_file import DetectorFile
from hf_neuroplastic.audio.evaluation import parts_of, score
from hf_neuroplastic.audio.prediction import predictions

SECONDS = (0.05, 0.31, 0.31, 0.9, 1.7, 0.2)
EXTRACTORS = {
    "wav2vec2": Wav2Vec2FeatureExtractor(),
    "conformer": Wav2Vec2FeatureExtractor(),
    "group norm": Wav2Vec2FeatureExtractor(return_attention_mask=False),
    "ast": ASTFeatureExtractor(num_mel_bins=16, max_length=32),
}


def detector(kind):
    torch.manual_seed(1)
    changes = {"group norm": {"feat_extract_norm": "group"}}.get(kind, {})
    return tiny_model("wav2vec2" if changes else kind, **changes).eval(), EXTRACTORS[kind]


@pytest.fixture
def rows(tmp_path):
    paths = [tmp_path / f"{index}.flac" for index in range(len(SECONDS))]
    for index, (path, seconds) in enumerate(zip(paths, SECONDS, strict=True)):
        noise = np.random.default_rng(index).normal(0, 0.02 * (index + 1), round(16000 * seconds))
        soundfile.write(path, noise, 16000)
    return audio_dataset(paths, ["bonafide", "spoof"] * 3, {"file_name": [path.name for path in paths]})


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", EXTRACTORS)
def test_a_score_does_not_depend_on_the_batch(rows, kind, full):
    model, extractor = detector(kind)
    alone = [score(model, extractor, rows.select([index]), 0.3, full=full).scores[0] for index in range(len(rows))]
    assert np.std(alone) > 1e-4
    for batch_size in (2, 6):
        scores = score(model, extractor, rows, 0.3, full=full, batch_size=batch_size, workers=batch_size // 6)
        np.testing.assert_allclose(scores.scores, alone, rtol=0, atol=1e-5)
        assert scores.files == [f"{index}.flac" for index in range(len(rows))]
        assert scores.labels.tolist() == [0, 1] * 3


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", EXTRACTORS)
def test_predict_gives_the_scores_of_evaluate(rows, kind, full, tmp_path):
    model, extractor = detector(kind)
    files = [row["audio"]["path"] for row in rows]
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    unreadable = []
    found = predictions(
        model, extractor, [*files[:2], str(tmp_path / "broken.wav"), *files[2:]], DetectorFile(0.3, 0.5), 0.0, unreadable,
        full=full, batch_size=4,
    )  # fmt: skip
    found = list(found)
    expected = score(model, extractor, rows, 0.3, full=full).scores
    np.testing.assert_allclose([each["score"] for each in found], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose([each["llr"] for each in found], expected - 0.5, rtol=0, atol=1e-5)
    assert [each["file"] for each in found] == files
    assert all(each["label"] == ("bonafide" if each["llr"] >= 0 else "spoof") for each in found)
    assert len(unreadable) == 1
    assert "broken.wav" in unreadable[0]


def test_long_recordings_are_scored_in_equal_parts(rows, monkeypatch):
    model, extractor = detector("wav2vec2")
    whole = score(model, extractor, rows, 0.3, full=True).scores
    monkeypatch.setattr(evaluation, "LONGEST_PART", 1.0)
    parted = score(model, extractor, rows, 0.3, full=True).scores
    np.testing.assert_allclose(np.delete(parted, 4), np.delete(whole, 4), rtol=0, atol=1e-5)
    samples = soundfile.read(rows[4]["audio"]["path"], dtype="float32")[0]
    halves = [{"audio": {"array": half, "sampling_rate": 16000}} for half in (samples[:16000], samples[-16000:])]
    with torch.no_grad():
        logits = model(**evaluation.scoring_collator(extractor, 0.3, True, model)(halves)).logits.mean(0)
    assert parted[4] == pytest.approx((logits[0] - logits[1]).item(), abs=1e-5)


@pytest.mark.parametrize("duration", [0.01, 29.99, 30.0, 30.01, 3601.0])
def test_parts_cover_a_recording(duration):
    parts = parts_of(duration, 30.0)
    starts = [share * max(0.0, duration - seconds) for seconds, share in parts]
    assert starts[0] == 0
    assert duration - 1e-9 <= starts[-1] + parts[-1][0] < max(duration, 0.25) + 0.25
    assert len({seconds for seconds, _ in parts}) == 1
    assert all(following - start <= parts[0][0] + 1e-9 for start, following in pairwise(starts))
    assert all(seconds <= 30.0 for seconds, _ in parts)


def test_windows_beyond_what_the_extractor_takes_are_refused():
    assert longest_window(EXTRACTORS["wav2vec2"]) is None
    require_window(3600, EXTRACTORS["wav2vec2"])
    require_window(0.335, EXTRACTORS["ast"])
    with pytest.raises(ValueError, match=r"seconds must be at most 0\.335, .* ASTFeatureExtractor .* got 4"):
        require_window(4, EXTRACTORS["ast"])
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype("float32")
    features = [EXTRACTORS["ast"](samples[:n], sampling_rate=16000)["input_values"] for n in (5360, 16000)]
    np.testing.assert_array_equal(*features)
