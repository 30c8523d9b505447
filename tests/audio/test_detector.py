"""A detector is loaded with its classes in our order, whatever they are called, or not without a word."""

import logging

import pytest
import torch
from detectors import save_detector
from safetensors.torch import load_file, save_file
from transformers import ASTFeatureExtractor, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor

from hf_neuroplastic.audio.corpora.labels import meaning
from hf_neuroplastic.audio.detector import load_detector, read_window


@pytest.fixture
def published(tmp_path):
    """Saves a model whose two classes have these names."""

    def save(first, second, dtype=torch.float32, **settings):
        save_detector("wav2vec2", tmp_path)
        model = AutoModelForAudioClassification.from_pretrained(tmp_path, dtype=dtype)
        model.config.id2label, model.config.label2id = {0: first, 1: second}, {first: 0, second: 1}
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return save


@pytest.mark.parametrize("names", [("fake", "real"), ("spoof", "bona-fide"), ("AI", "Human")])
def test_a_head_of_the_other_order_is_turned_with_a_word(names, published, caplog):
    theirs, folder = published(*names)
    with caplog.at_level(logging.WARNING):
        ours, _ = load_detector(str(folder))
    assert ours.config.id2label == {0: "bonafide", 1: "spoof"}
    assert torch.equal(ours.classifier.weight, theirs.classifier.weight.flip(0))
    assert torch.equal(ours.classifier.bias, theirs.classifier.bias.flip(0))
    assert "is turned into the order" in caplog.text


def test_a_head_of_our_order_is_kept(published):
    theirs, folder = published("Real", "Deepfake")
    assert torch.equal(load_detector(str(folder))[0].classifier.weight, theirs.classifier.weight)


def test_a_head_whose_names_say_nothing_begins_anew_with_a_word(published, caplog):
    theirs, folder = published("LABEL_0", "LABEL_1")
    with caplog.at_level(logging.WARNING):
        ours, _ = load_detector(str(folder))
    assert not torch.equal(ours.classifier.weight, theirs.classifier.weight)
    assert "does not say which is bona fide" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_hidden_states_are_as_others(dtype, published):
    _, folder = published("bonafide", "spoof", dtype=dtype, output_hidden_states=True)
    model, _ = load_detector(str(folder))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.config.output_hidden_states


def test_keys_that_do_not_fit_are_refused(published):
    _, folder = published("bonafide", "spoof")
    weights = {f"module.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks \d+ of \d+ tensors of the model.*others, such as 'module\..*rename its keys"
    ):
        load_detector(str(folder))


def test_words_are_known_in_any_spelling():
    assert [meaning(name) for name in ("Bona_Fide", "REAL", "ai-generated", "Spoof", "LABEL_1", "other")] == [
        "bonafide",
        "bonafide",
        "spoof",
        "spoof",
        None,
        None,
    ]


def test_a_model_without_detector_file_gets_a_window_that_is_not_cut(tmp_path):
    extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=32)
    assert read_window(tmp_path, extractor).seconds == pytest.approx(0.335)
    assert read_window(tmp_path, Wav2Vec2FeatureExtractor()).seconds == 4.0375
