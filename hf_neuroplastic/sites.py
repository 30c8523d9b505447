"""What a hidden neuron is, and where a model has them.

A site is one feed-forward layer: `up` (Linear D -> N), an activation, `down` (Linear N -> D). Neuron i of it is row i of
`up.weight`, `up.bias[i]` and column i of `down.weight`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps the parts of its feed-forward layers."""

    models: str  # for people
    container: str  # regular expression for the whole name of the class that holds the parts
    up: str  # paths relative to the container
    activation: str
    down: str
    width: str = "intermediate_size"  # where the model's configuration holds the number of neurons
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
)  # fmt: skip

# Elementwise, without parameters: what may stand between the two Linears of a torch.nn.Sequential.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Site:
    """One feed-forward layer of a model. `name` is the path of the module that holds it (of `up` in a Sequential)."""

    name: str
    up: nn.Linear
    activation: nn.Module
    down: nn.Linear
    width_key: str | None = None  # where configurations hold the width, if they do
    configs: tuple[
        Any, ...
    ] = ()  # the configurations of the modules around the site that hold its width, innermost first
    chained: bool = False  # `up` is another site's `down`, or the other way round
    container: nn.Module | None = None  # the module that computes this site and nothing else, if there is one
    dropout: nn.Module | None = None
    output_dropout: nn.Module | None = None

    @property
    def width(self) -> int:
        """N, the number of hidden neurons."""
        return self.up.out_features

    @property
    def trainable(self) -> bool:
        """Whether new neurons could learn: neither weight is frozen."""
        return self.up.weight.requires_grad and self.down.weight.requires_grad


def find_sites(model: nn.Module) -> list[Site]:
    """Every feed-forward layer of `model` that can be watched and operated on, in the order of its modules.

    Raises:
        TypeError: a known feed-forward layer whose parts are not what they should be (wrapped or quantised Linears, say).
        ValueError: weights or activations that two places share: replacing a neuron here would change the other place.
    """
    sites = [site for name, module in model.named_modules() for site in _sites_of(name, module)]
    _refuse_sharing(model, sites)
    configs = {name: module.config for name, module in model.named_modules() if hasattr(module, "config")}
    ups, downs = {id(site.up) for site in sites}, {id(site.down) for site in sites}
    return [
        replace(site, configs=_configs_of(site, configs), chained=id(site.up) in downs or id(site.down) in ups)
        for site in sites
    ]


def _configs_of(site: Site, configs: dict[str, Any]) -> tuple[Any, ...]:
    """Encoder-decoder models give their parts configurations of their own, which need not be the objects inside the parts."""
    parts = site.name.split(".")
    around = (configs.get(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    held = {
        id(config): config
        for config in around
        if site.width_key and getattr(config, site.width_key, None) == site.width
    }
    return tuple(held.values())


def select_sites(model: nn.Module, layers: int | str | Sequence[int | str] | None = None) -> list[Site]:
    """The trainable sites of `model` that `layers` names (see DropInConfig.layers), in model order.

    Without `layers`, frozen sites are left out. A frozen site that is asked for is an error, since neurons reborn in it could
    not learn.

    Raises:
        ValueError: nothing matches, or what matches is frozen; the message lists what there is.
    """
    sites = find_sites(model)
    if not sites:
        supported = "; ".join(architecture.models for architecture in ARCHITECTURES)
        raise ValueError(
            f"{type(model).__name__} has no feed-forward layer that DropIn knows. Supported: {supported}; "
            f"and Linear-activation-Linear inside torch.nn.Sequential"
        )
    if layers is None:
        chosen = [site for site in sites if site.trainable]
        if not chosen:
            raise ValueError(
                f"all {len(sites)} feed-forward layers of {type(model).__name__} are frozen, and new neurons in them could "
                f"not learn; unfreeze some before DropIn(model)"
            )
        if len(chosen) < len(sites):
            logger.info("%d frozen feed-forward layers are left alone", len(sites) - len(chosen))
        return chosen
    entries = [layers] if isinstance(layers, (int, str)) else list(layers)
    indices = {index for entry in entries for index in _matches(entry, sites)}
    chosen = [sites[index] for index in sorted(indices)]
    frozen = [site.name for site in chosen if not site.trainable]
    if frozen:
        raise ValueError(f"layers selects frozen feed-forward layers {frozen}; unfreeze them or select others")
    return chosen


def _matches(entry: int | str, sites: list[Site]) -> list[int]:
    available = ", ".join(f"{index}: {site.name}" for index, site in enumerate(sites))
    if isinstance(entry, int):
        if not -len(sites) <= entry < len(sites):
            raise ValueError(f"layers asks for index {entry}, but the model has these sites: {available}")
        return [entry % len(sites)]
    exact = [index for index, site in enumerate(sites) if site.name == entry]
    if exact:
        return exact
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise ValueError(f"layers entry {entry!r} is neither a site's name nor a regular expression: {error}") from None
    found = [index for index, site in enumerate(sites) if pattern.search(site.name)]
    if not found:
        raise ValueError(f"layers entry {entry!r} matches none of the model's sites: {available}")
    return found


def _sites_of(name: str, module: nn.Module) -> Iterator[Site]:
    if isinstance(module, nn.Sequential):
        yield from _sites_of_sequential(name, module)
        return
    for architecture in ARCHITECTURES:
        if re.fullmatch(architecture.container, type(module).__name__):
            parts = [_descend(module, path) for path in (architecture.up, architecture.activation, architecture.down)]
            if None not in parts:
                up, activation, down = parts
                site = _checked_site(name, up, activation, down)
                yield replace(site, width_key=architecture.width, **_whole_parts(architecture, module))
                return


def _whole_parts(architecture: Architecture, module: nn.Module) -> dict[str, Any]:
    if not architecture.whole:
        return {}
    paths = {"dropout": architecture.dropout, "output_dropout": architecture.output_dropout}
    return {"container": module} | {role: _descend(module, path) for role, path in paths.items() if path}


def _descend(module: nn.Module, path: str) -> Any:
    part: Any = module
    for attribute in path.split("."):
        part = getattr(part, attribute, None)
    return part


def _sites_of_sequential(name: str, sequential: nn.Sequential) -> Iterator[Site]:
    # Dropout may stand between the activation and `down`. Not named_children(): it would hide a module used twice.
    parts = [(key, part) for key, part in sequential._modules.items() if not isinstance(part, nn.Dropout)]
    in_place = any(isinstance(part, nn.Dropout) and part.inplace for part in sequential._modules.values())
    for (key, up), (_, activation), (_, down) in zip(parts, parts[1:], parts[2:], strict=False):
        if isinstance(up, nn.Linear) and isinstance(activation, ELEMENTWISE) and isinstance(down, nn.Linear):
            if in_place:
                raise ValueError(
                    f"{name or 'the model'!r} overwrites what DropIn observes: set inplace=False on its Dropout"
                )
            yield _checked_site(f"{name}.{key}" if name else key, up, activation, down)


def _checked_site(name: str, up: Any, activation: Any, down: Any) -> Site:
    for role, part in (("up", up), ("down", down)):
        if type(part) is not nn.Linear:
            raise TypeError(
                f"the {role} projection of {name!r} must be a plain torch.nn.Linear, got {type(part).__module__}."
                f"{type(part).__name__}; apply DropIn before adapters or quantisation, or to a model without them"
            )
    if not isinstance(activation, nn.Module):
        raise TypeError(
            f"the activation of {name!r} must be a torch.nn.Module, got {activation!r}; name it in config.hidden_act"
        )
    for part in (up, down):
        require_whole(name, part)
    if up.out_features != down.in_features:
        raise ValueError(f"{name!r}: up gives {up.out_features} neurons but down takes {down.in_features}")
    return Site(name, up, activation, down)


def silences(site: Site) -> bool:
    """Whether a neuron with zero weights is silent: its activation maps 0 to 0."""
    return site.activation(torch.zeros(1)).item() == 0.0


def inert_slots(site: Site) -> Tensor:
    """[N] bool: slots in reserve, with zero incoming weights, bias and outgoing weights, where these silence a neuron."""
    up, down = site.up, site.down
    inert = ~up.weight.detach().any(dim=1) & ~down.weight.detach().any(dim=0)
    if up.bias is not None:
        inert &= up.bias.detach() == 0
    return inert if silences(site) else torch.zeros_like(inert)


def require_whole(name: str, linear: nn.Linear) -> None:
    """Refuses a Linear whose weight is no plain Parameter of its whole shape.

    Raises:
        TypeError: the weight is sharded (FSDP, ZeRO-3), or recomputed from other parameters (weight_norm, parametrizations).
    """
    weight = linear.weight
    if hasattr(weight, "device_mesh") or weight.shape != (linear.out_features, linear.in_features):
        raise TypeError(
            f"a weight of {name!r} is sharded (FSDP or ZeRO-3), and DropIn needs whole neurons; train data-parallel (DDP), or "
            f"without DropIn"
        )
    if not isinstance(weight, nn.Parameter):
        raise TypeError(
            f"a weight of {name!r} is recomputed from other parameters (weight_norm, spectral_norm, pruning), so a change to "
            f"it would be lost; remove that before DropIn"
        )


def _refuse_sharing(model: nn.Module, sites: list[Site]) -> None:
    holders: dict[int, list[str]] = {}
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(parameter_name)
    activations = Counter(id(site.activation) for site in sites)
    for site in sites:
        for weight in (site.up.weight, site.up.bias, site.down.weight, site.down.bias):
            if weight is not None and len(holders.get(id(weight), [])) > 1:
                raise ValueError(
                    f"site {site.name!r} shares a weight ({', '.join(holders[id(weight)])}): replacing a neuron in one place "
                    f"would change the other; untie the weights first"
                )
        if activations[id(site.activation)] > 1:
            raise ValueError(
                f"site {site.name!r} shares its activation module with another site; give each its own instance"
            )
