"""Small audio classifiers with random weights, saved as `from_pretrained` wants them."""

from pathlib import Path

from tiny import tiny_model
from transformers import Wav2Vec2FeatureExtractor

from hf_neuroplastic.audio.demo import save_small_model
from hf_neuroplastic.audio.detector import label_settings


def save_detector(kind: str, folder: Path, **config) -> Path:
    """A wav2vec2 of three layers, or the demonstration's AST ("ast"), with our two labels and its feature extractor."""
    if kind == "ast":
        save_small_model(folder, seed=0)
    else:
        tiny_model(kind, num_hidden_layers=3, **label_settings(), **config).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder
