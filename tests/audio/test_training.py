"""What the command line runs: methods by name, their data, and going on where a run was."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_neuroplastic.audio import AudioCollator, load_asvspoof2019, write_corpus
from hf_neuroplastic.audio.demo import save_small_model
from hf_neuroplastic.audio.metrics import equal_error_rate
from hf_neuroplastic.audio.training import Settings, bona_fide_scores, fine_tune
from hf_neuroplastic.neurons.config import DropInConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", utterances={"train": 16, "dev": 4, "eval": 12})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_small_model("wav2vec2", folder, seed=0)
    return folder


def test_training_crops_at_random_and_evaluation_in_the_middle(corpus, model, monkeypatch):
    in_the_middle: dict[int, list[bool]] = {}

    class Watched(AudioCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            middle = AudioCollator(self.feature_extractor, self.max_seconds)(rows)
            same = torch.equal(batch["input_values"], middle["input_values"])
            in_the_middle.setdefault(id(self), []).append(same)
            return batch

    monkeypatch.setattr("hf_neuroplastic.audio.training.AudioCollator", Watched)
    train, evaluation = (load_asvspoof2019(corpus, "LA", split) for split in ("train", "eval"))
    network = AutoModelForAudioClassification.from_pretrained(model)
    extractor = AutoFeatureExtractor.from_pretrained(model)
    settings = Settings(steps=2, batch_size=4, max_seconds=0.3)
    fine_tune(network, extractor, train, evaluation, "adamw", settings)
    trained, evaluated = in_the_middle.values()
    assert not any(trained)
    assert all(evaluated)


def test_scores_are_higher_for_bona_fide():
    scores = bona_fide_scores(np.array([[2.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-1.0, 3.0]]))
    assert equal_error_rate(scores, [0, 0, 1, 1])[0] == 0.0


class _Energy(torch.nn.Module):
    """A classifier of loudness: nothing in it is a feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 2)

    def forward(self, input_values, attention_mask=None, labels=None):
        logits = self.head(input_values.square().mean(1, keepdim=True))
        return SequenceClassifierOutput(loss=torch.nn.functional.cross_entropy(logits, labels), logits=logits)


@pytest.mark.parametrize("method", ["adamw", "neuroplastic"])
def test_models_without_sites_can_be_trained_without_dropin(method, corpus):
    train, evaluation = (load_asvspoof2019(corpus, "LA", split) for split in ("train", "eval"))
    settings, extractor = Settings(steps=1, batch_size=2), Wav2Vec2FeatureExtractor()
    assert fine_tune(_Energy(), extractor, train, evaluation, method, settings).health == []
    with pytest.raises(ValueError, match="no feed-forward layer"):
        fine_tune(_Energy(), extractor, train, evaluation, f"{method}+dropin", settings)


def test_unknown_methods_are_named(model):
    with pytest.raises(ValueError, match=r"method must be one of adamw.*got 'sgd'"):
        fine_tune(None, None, None, None, "sgd", Settings())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps.*0"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"learning_rate": -1.0}, "learning_rate.*-1"),
        ({"learning_rate": 2.0}, "learning_rate.*at most 1.*2"),
        ({"learning_rate": float("nan")}, "learning_rate.*nan"),
    ],
)
def test_settings_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        Settings(**arguments)


@pytest.mark.parametrize("source", ["start", "checkpoint"])
def test_fine_tuning_resumes_a_growing_run(tmp_path, corpus, model, source):
    train, evaluation = (load_asvspoof2019(corpus, "LA", split) for split in ("train", "eval"))
    output = tmp_path / "out"
    growing = DropInConfig.dropin(5, interval=1)
    settings = Settings(steps=5, batch_size=4, max_seconds=None, dropin=growing)  # no cropping

    def run(folder, resume):
        network = AutoModelForAudioClassification.from_pretrained(folder)
        extractor = AutoFeatureExtractor.from_pretrained(model)
        fine_tune(network, extractor, train, evaluation, "neuroplastic+dropin", settings, output=output, resume=resume)
        return network

    whole = run(model, resume=False)
    shutil.rmtree(output / "checkpoint-5")
    resumed = run(model if source == "start" else output / "checkpoint-4", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
