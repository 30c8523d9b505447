"""What connects the rooms to Trainer and the Hub."""

from .callback import DropInCallback
from .checkpoint import SideFileError, last_whole_checkpoint, load_side_files, resume_dropin, save_side_files
from .hub import save_for_hub
from .neuron_adapters import attach_neurons, detach_neurons, save_neurons
from .saved_keys import accept_saved_keys

__all__ = [
    "DropInCallback",
    "SideFileError",
    "accept_saved_keys",
    "attach_neurons",
    "detach_neurons",
    "last_whole_checkpoint",
    "load_side_files",
    "resume_dropin",
    "save_for_hub",
    "save_neurons",
    "save_side_files",
]
