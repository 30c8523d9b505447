"""Plasticity for fine-tuning Hugging Face models: the NeuroPlastic optimizer and DropIn neuron replacement."""

from .callback import DropInCallback
from .checkpoint import SideFileError, last_whole_checkpoint, load_side_files, resume_dropin, save_side_files
from .config import DropInConfig
from .dropin import DropIn, unpatch
from .growth import grow
from .hub import save_for_hub
from .optimizer import NeuroPlastic
from .resize import compact, reserve
from .saved_keys import accept_saved_keys
from .schedules import Constant, Cosine, OneOff

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
