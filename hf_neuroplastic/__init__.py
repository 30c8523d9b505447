"""Plasticity for fine-tuning Hugging Face models: the NeuroPlastic optimizer and DropIn neuron replacement."""

from .huggingface.callback import DropInCallback
from .huggingface.checkpoint import (
    SideFileError,
    last_whole_checkpoint,
    load_side_files,
    resume_dropin,
    save_side_files,
)
from .huggingface.hub import save_for_hub
from .huggingface.saved_keys import accept_saved_keys
from .neurons.config import DropInConfig
from .neurons.dropin import DropIn, unpatch
from .neurons.operate.growth import grow
from .neurons.operate.resize import compact, reserve
from .neurons.schedules import Constant, Cosine, OneOff
from .optimizer.neuroplastic import NeuroPlastic

__version__ = "0.1.0"
__all__ = [
    "Constant",
    "Cosine",
    "DropIn",
    "DropInCallback",
    "DropInConfig",
    "NeuroPlastic",
    "OneOff",
    "SideFileError",
    "accept_saved_keys",
    "compact",
    "grow",
    "last_whole_checkpoint",
    "load_side_files",
    "reserve",
    "resume_dropin",
    "save_for_hub",
    "save_side_files",
    "unpatch",
]
