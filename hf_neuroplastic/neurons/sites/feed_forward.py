"""Feed-forward layers, plain and gated: a table, one row per architecture, and Linear-activation-Linear in a Sequential."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .requirements import checked_linears
from .sequential import ELEMENTWISE, Part, refuse_in_place
from .site import Site


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps the parts of its feed-forward layers."""

    models: str  # for people
    container: str  # regular expression for the whole name of the class that holds the parts
    up: str  # paths relative to the container
    activation: str
    down: str
    width: str = "intermediate_size"  # where the model's configuration holds the number of neurons
    gate: str = ""  # the layer is down(activation(gate(x)) * up(x)), a dropout before `down` allowed
    whole: bool = (
        False  # the container computes output_dropout(down(dropout(activation(up(x))))) of one argument, no more
    )
    dropout: str = ""
    output_dropout: str = ""


ARCHITECTURES = (
    Architecture(
        "wav2vec2, HuBERT, WavLM, UniSpeech, UniSpeech-SAT, data2vec-audio, SEW, wav2vec2-conformer, wav2vec2-BERT",
        r"(Wav2Vec2|Hubert|WavLM|UniSpeech|UniSpeechSat|Data2VecAudio|SEW|Wav2Vec2Conformer|Wav2Vec2Bert)FeedForward",
        "intermediate_dense", "intermediate_act_fn", "output_dense",
        whole=True, dropout="intermediate_dropout", output_dropout="output_dropout",
    ),
    Architecture("AST, ViT", r"(AST|ViT)MLP", "fc1", "activation_fn", "fc2", whole=True),
    Architecture(
        "BERT, RoBERTa; AST, ViT as transformers laid them out before the MLP class",
        r"(Bert|Roberta|AST|ViT)Layer", "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense",
    ),
    Architecture("Whisper encoder", r"WhisperEncoderLayer", "fc1", "activation_fn", "fc2", "encoder_ffn_dim"),
    Architecture("Whisper decoder", r"WhisperDecoderLayer", "fc1", "activation_fn", "fc2", "decoder_ffn_dim"),
    Architecture(
        "gated: Llama, Mistral, Ministral, Qwen2, Qwen3, Gemma 1 to 3, OLMo 1 to 3, Cohere 1 and 2, Granite, Helium, "
        "SmolLM3, StableLM, EXAONE 4, EuroBERT, CSM",
        r"(Llama|Mistral|Ministral3?|Qwen[23]|Gemma[23]?|Olmo[23]?|Cohere2?|Granite|Helium|SmolLM3|StableLm|Exaone4"
        r"|EuroBert|Csm)MLP",
        "up_proj", "act_fn", "down_proj", gate="gate_proj",
    ),
)  # fmt: skip


def architecture_site(name: str, module: nn.Module) -> Site | None:
    """The site that `module`, at the path `name`, holds by the table of architectures."""
    for architecture in ARCHITECTURES:
        if re.fullmatch(architecture.container, type(module).__name__):
            paths = (architecture.up, architecture.activation, architecture.down, architecture.gate)
            up, activation, down, gate = (_descend(module, path) for path in paths)
            if up is None or activation is None or down is None or (architecture.gate and gate is None):
                continue
            checked_linears(name, up, activation, down, gate)
            return Site(
                name, up, activation, down, gate, width_key=architecture.width,
                watch="output" if gate is None else "input", **_whole_parts(architecture, module),
            )  # fmt: skip
    return None


def sequential_sites(parts: list[Part], sequential: nn.Sequential, name: str) -> Iterator[Site]:
    """Linear, activation, Linear in a row; Dropout may stand between the activation and the second Linear."""
    for up, activation, down in zip(parts, parts[1:], parts[2:], strict=False):
        linears = isinstance(up.module, nn.Linear) and isinstance(down.module, nn.Linear)
        if linears and isinstance(activation.module, ELEMENTWISE):
            refuse_in_place(name, sequential)
            checked_linears(up.path, up.module, activation.module, down.module)
            yield Site(up.path, up.module, activation.module, down.module)


def _whole_parts(architecture: Architecture, module: nn.Module) -> dict[str, Any]:
    if not architecture.whole:
        return {}
    paths = {"dropout": architecture.dropout, "output_dropout": architecture.output_dropout}
    return {"container": module} | {role: _descend(module, path) for role, path in paths.items() if path}


def _descend(module: nn.Module, path: str) -> Any:
    """The part at `path`, or None if there is none."""
    part: Any = module if path else None
    for attribute in path.split("."):
        part = getattr(part, attribute, None)
    return part
