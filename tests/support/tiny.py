"""Small models of the real classes, with random weights, and batches for them."""

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    GemmaConfig,
    GemmaForSequenceClassification,
    HubertConfig,
    HubertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SEWConfig,
    SEWForSequenceClassification,
    UniSpeechConfig,
    UniSpeechForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForSequenceClassification,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "feat_extract_norm": "layer",
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
SPEECH_MODELS = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForSequenceClassification),
    "hubert": (HubertConfig, HubertForSequenceClassification),
    "wavlm": (WavLMConfig, WavLMForSequenceClassification),
    "unispeech": (UniSpeechConfig, UniSpeechForSequenceClassification),
}
MORE_SPEECH_MODELS = {
    "data2vec": (Data2VecAudioConfig, Data2VecAudioForSequenceClassification),
    "sew": (SEWConfig, SEWForSequenceClassification),
    "conformer": (Wav2Vec2ConformerConfig, Wav2Vec2ConformerForSequenceClassification),
}
PATCHES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FAMILIES = (*SPEECH_MODELS, "ast", "vit")
GATED_MODELS = {
    "llama": (LlamaConfig, LlamaForSequenceClassification),
    "gemma": (GemmaConfig, GemmaForSequenceClassification),
    "qwen3": (Qwen3Config, Qwen3ForSequenceClassification),
}
GATED = tuple(GATED_MODELS)
MORE_FAMILIES = (*MORE_SPEECH_MODELS, "wav2vec2_bert", "whisper", "bert", "roberta")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def tiny_model(family: str, **changes) -> nn.Module:
    """A two-layer model of `family` in training mode; two classes."""
    torch.manual_seed(0)
    if family in SPEECH_MODELS or family in MORE_SPEECH_MODELS:
        config_class, model_class = {**SPEECH_MODELS, **MORE_SPEECH_MODELS}[family]
        dropout = {"conformer_conv_dropout": 0.0} if family == "conformer" else {}
        model = model_class(config_class(**{**SPEECH, **dropout, **changes}))
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
    elif family == "wav2vec2_bert":
        settings = {
            **SMALL,
            "feature_projection_input_dim": 8,
            "classifier_proj_size": 8,
            "layerdrop": 0.0,
            "conv_depthwise_kernel_size": 3,
        }
        settings |= {name: 0.0 for name in SPEECH if name.endswith("dropout")} | {
            "conformer_conv_dropout": 0.0,
            "apply_spec_augment": False,
        }
        model = Wav2Vec2BertForSequenceClassification(Wav2Vec2BertConfig(**{**settings, **changes}))
    elif family == "whisper":
        settings = {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 20,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "vocab_size": 20,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "dropout": 0.0,
        }
        model = WhisperForConditionalGeneration(WhisperConfig(**{**settings, **changes}))
    elif family in GATED_MODELS:
        config_class, model_class = GATED_MODELS[family]
        settings = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 30, "max_position_embeddings": 20}
        model = model_class(config_class(**{**settings, "pad_token_id": 0, "num_labels": 2, **changes}))
    elif family in ("bert", "roberta"):
        config_class, model_class = (
            (BertConfig, BertForSequenceClassification)
            if family == "bert"
            else (RobertaConfig, RobertaForSequenceClassification)
        )
        settings = {
            **SMALL,
            "vocab_size": 30,
            "max_position_embeddings": 20,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        model = model_class(config_class(**{**settings, **changes}))
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
    if family == "whisper":
        features = torch.randn(size, 8, 40, generator=generator)
        return {"input_features": features, "labels": torch.randint(3, 20, (size, 6), generator=generator)}
    if family == "wav2vec2_bert":
        return {"input_features": torch.randn(size, 20, 8, generator=generator), "labels": labels}
    if family in ("bert", "roberta", *GATED):
        return {"input_ids": torch.randint(3, 30, (size, 7), generator=generator), "labels": labels}
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


def tiny_decoder() -> nn.Module:
    """A two-layer BERT that continues text, for encoder-decoder models."""
    torch.manual_seed(0)
    return BertLMHeadModel(
        BertConfig(**SMALL, vocab_size=30, max_position_embeddings=20, is_decoder=True, add_cross_attention=True)
    )


def train(model, dropin, optimizer, batches):
    """A plain loop of optimizer steps, a batch each."""
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
