"""Every architecture that README lists goes from a saved model through train, evaluate and predict."""

import csv
import io
import json

import pytest
import torch
from tiny import SPEECH, tiny_model
from transformers import (
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    SeamlessM4TFeatureExtractor,
    UniSpeechSatConfig,
    UniSpeechSatForSequenceClassification,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)
from typer.testing import CliRunner

from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.cli import app


def whisper():
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_layers": 2, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "classifier_proj_size": 8}
    tokens = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(num_mel_bins=8, max_source_positions=50, max_target_positions=16, **sizes, **heads, **tokens)
    return WhisperForAudioClassification(config), WhisperFeatureExtractor(feature_size=8, chunk_length=1)


def made(family):
    torch.manual_seed(0)
    speech = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    if family == "whisper":
        return whisper()
    if family == "unispeech-sat":
        return UniSpeechSatForSequenceClassification(UniSpeechSatConfig(**SPEECH)), speech
    if family == "ast":
        return tiny_model("ast"), ASTFeatureExtractor(num_mel_bins=16, max_length=32)
    if family == "wav2vec2_bert":
        extractor = SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8, stride=2)
        return tiny_model("wav2vec2_bert", feature_projection_input_dim=16), extractor
    if family == "wav2vec2 with group norm":
        return tiny_model("wav2vec2", feat_extract_norm="group"), Wav2Vec2FeatureExtractor(return_attention_mask=False)
    return tiny_model(family), speech


FAMILIES = (
    "wav2vec2",
    "wav2vec2 with group norm",
    "hubert",
    "wavlm",
    "unispeech",
    "unispeech-sat",
    "data2vec",
    "sew",
    "conformer",
    "wav2vec2_bert",
    "ast",
    "whisper",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", utterances={"train": 8, "dev": 4, "eval": 6})


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_train_evaluate_predict(family, corpus, tmp_path):
    for part in made(family):
        part.save_pretrained(tmp_path / "start")
    out, detector = tmp_path / "out", tmp_path / "out" / "model"
    run(
        "train", "--model", tmp_path / "start", "--data", corpus, "--output", out, "--seconds", 0.3, "--steps", 3,
        "--batch-size", 4, "--learning-rate", 1e-3, "--augment", "rawboost:3",
    )  # fmt: skip
    assert json.loads((out / "results.json").read_text())["runs"][0]["train_loss"] > 0
    before, after = (
        AutoModelForAudioClassification.from_pretrained(folder) for folder in (tmp_path / "start", detector)
    )
    assert type(after) is type(before)
    assert after.config.id2label == {0: "bonafide", 1: "spoof"}
    changed = [
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert any(".layers." in name or ".layer." in name for name in changed)
    for options in ([], ["--full"]):
        output = tmp_path / f"evaluation{len(options)}"
        run("evaluate", detector, "--data", corpus, "--output", output, *options)
        with (output / "scores.csv").open() as file:
            scores = {row["file"]: float(row["score"]) for row in csv.DictReader(file)}
        files = [corpus / "LA" / "ASVspoof2019_LA_eval" / "flac" / f"{name}.flac" for name in scores]
        answers = csv.DictReader(io.StringIO(run("predict", detector, *files, *options).stdout))
        assert [float(row["score"]) for row in answers] == pytest.approx(list(scores.values()), abs=1e-5)
