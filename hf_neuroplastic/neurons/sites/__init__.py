"""Hidden neurons: their slices of tensors, and the search for layers of neurons in a model."""

from .engines import refuse_engines, require_unsplit
from .feed_forward import ARCHITECTURES
from .requirements import require_abilities, require_ability, require_operable_site, require_whole, require_whole_site
from .search import find_sites, select_sites
from .site import Fold, IncomingSlices, NeuronSlice, Site, all_inert_slots, inert_slots, per_neuron, silences

__all__ = [
    "ARCHITECTURES",
    "Fold",
    "IncomingSlices",
    "NeuronSlice",
    "Site",
    "all_inert_slots",
    "find_sites",
    "inert_slots",
    "per_neuron",
    "refuse_engines",
    "require_abilities",
    "require_ability",
    "require_operable_site",
    "require_unsplit",
    "require_whole",
    "require_whole_site",
    "select_sites",
    "silences",
]
