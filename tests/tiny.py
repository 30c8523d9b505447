"""Small models of the real classes, with random weights, and batches for them."""

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    UniSpeechConfig,
    UniSpeechForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
)

SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (10, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
    "feat_extract_norm": "layer", "mask_time_prob": 0.0, "layerdrop": 0.0,
    "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0,
}  # fmt: skip
SPEECH_MODELS = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForSequenceClassification),
    "hubert": (HubertConfig, HubertForSequenceClassification),
    "wavlm": (WavLMConfig, WavLMForSequenceClassification),
    "unispeech": (UniSpeechConfig, UniSpeechForSequenceClassification),
}
PATCHES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
FAMILIES = (*SPEECH_MODELS, "ast", "vit")


def tiny_model(family: str, **changes) -> nn.Module:
    """A two-layer model of `family` in training mode; two classes."""
    torch.manual_seed(0)
    if family in SPEECH_MODELS:
        config_class, model_class = SPEECH_MODELS[family]
        model = model_class(config_class(**{**SPEECH, **changes}))
    elif family == "ast":
        settings = {
            **PATCHES,
            "num_mel_bins": 16,
            "max_length": 32,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
        }
        model = ASTForAudioClassification(ASTConfig(**{**settings, "num_labels": 2, **changes}))
    elif family == "vit":
        model = ViTForImageClassification(
            ViTConfig(**{**PATCHES, "image_size": 16, "patch_size": 8, "num_labels": 2, **changes})
        )
    else:
        raise ValueError(f"family must be one of {FAMILIES}, got {family!r}")
    return model.train()


def tiny_batch(family: str, size: int = 4, *, padded: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """A labelled batch for `tiny_model(family)`; `padded` gives every second speech sample half its length."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    if family == "ast":
        return {"input_values": torch.randn(size, 32, 16, generator=generator), "labels": labels}
    if family == "vit":
        return {"pixel_values": torch.randn(size, 3, 16, 16, generator=generator), "labels": labels}
    length = 800
    batch = {"input_values": torch.randn(size, length, generator=generator), "labels": labels}
    if padded:
        mask = torch.ones(size, length, dtype=torch.long)
        mask[1::2, length // 2 :] = 0
        batch["input_values"] = batch["input_values"] * mask
        batch["attention_mask"] = mask
    return batch


def tiny_mlp(
    inputs: int = 6, hidden: int = 10, outputs: int = 3, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """The smallest model with a site."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, outputs))
