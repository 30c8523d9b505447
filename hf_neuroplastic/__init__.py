"""Plasticity for fine-tuning Hugging Face models: the NeuroPlastic optimizer and DropIn neuron replacement."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .huggingface.callback import DropInCallback
    from .huggingface.checkpoint import (
        SideFileError,
        last_whole_checkpoint,
        load_side_files,
        resume_dropin,
        save_side_files,
    )
    from .huggingface.hub import save_for_hub
    from .huggingface.neuron_adapters import attach_neurons, detach_neurons, save_neurons
    from .huggingface.saved_keys import accept_saved_keys
    from .neurons.config import DropInConfig
    from .neurons.dropin import DropIn, unpatch
    from .neurons.operate.adapter_base import AdapterBase, only_new_neurons
    from .neurons.operate.adapter_optimizer import new_neuron_optimizer
    from .neurons.operate.growth import grow
    from .neurons.operate.resize import compact, reserve
    from .neurons.schedules import Constant, Cosine, OneOff
    from .optimizer.neuroplastic import NeuroPlastic

__version__ = "0.1.0"
__all__ = [
    "AdapterBase",
    "Constant",
    "Cosine",
    "DropIn",
    "DropInCallback",
    "DropInConfig",
    "NeuroPlastic",
    "OneOff",
    "SideFileError",
    "accept_saved_keys",
    "attach_neurons",
    "compact",
    "detach_neurons",
    "grow",
    "last_whole_checkpoint",
    "load_side_files",
    "new_neuron_optimizer",
    "only_new_neurons",
    "reserve",
    "resume_dropin",
    "save_for_hub",
    "save_neurons",
    "save_side_files",
    "unpatch",
]

# A name is imported when it is asked for: the command line answers --help without torch.
_HOMES = {
    "huggingface.callback": ("DropInCallback",),
    "huggingface.checkpoint": (
        "SideFileError",
        "last_whole_checkpoint",
        "load_side_files",
        "resume_dropin",
        "save_side_files",
    ),
    "huggingface.hub": ("save_for_hub",),
    "huggingface.neuron_adapters": ("attach_neurons", "detach_neurons", "save_neurons"),
    "huggingface.saved_keys": ("accept_saved_keys",),
    "neurons.config": ("DropInConfig",),
    "neurons.dropin": ("DropIn", "unpatch"),
    "neurons.operate.adapter_base": ("AdapterBase", "only_new_neurons"),
    "neurons.operate.adapter_optimizer": ("new_neuron_optimizer",),
    "neurons.operate.growth": ("grow",),
    "neurons.operate.resize": ("compact", "reserve"),
    "neurons.schedules": ("Constant", "Cosine", "OneOff"),
    "optimizer.neuroplastic": ("NeuroPlastic",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
