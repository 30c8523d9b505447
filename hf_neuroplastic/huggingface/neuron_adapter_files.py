"""The files of a neuron adapter: neuron_adapter.safetensors and neuron_adapter.json, which holds the digest of the other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from ..neurons.operate.adapter_base import AdapterBase
from .checkpoint import write_whole

TENSOR_FILE, INDEX_FILE = "neuron_adapter.safetensors", "neuron_adapter.json"
FORMAT = 1
BASE = "base/"  # before the names of the base's own values of modules that the adapter exchanges


class Adapter(NamedTuple):
    """The content of a folder: `counts` of neurons by site, their `slices` by name of the tensor, and `modules` as a whole."""

    base: AdapterBase
    counts: dict[str, int]
    slices: dict[str, Tensor]
    modules: dict[str, Tensor]


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Each file is written in one piece. Of two saves, a pair that was cut in between is refused by `read_adapter`."""
    base, values = adapter.base, {f"{BASE}{name}": value.contiguous() for name, value in adapter.base.tensors.items()}
    data = save(adapter.slices | adapter.modules | values)
    index = {
        "format": FORMAT,
        "neurons": adapter.counts,
        "base": {
            field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name != "tensors"
        },
        "modules": sorted(adapter.modules),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TENSOR_FILE, data)
    write_whole(folder / INDEX_FILE, json.dumps(index, indent=1, allow_nan=False).encode())


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """The adapter in `folder`.

    Raises:
        ValueError: files that are absent, damaged, of two saves, or of another format.
    """
    path = Path(folder) / INDEX_FILE
    try:
        index = json.loads(path.read_bytes())
        data = (Path(folder) / TENSOR_FILE).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder} is no neuron adapter: {error.filename} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    form = index.get("format") if isinstance(index, dict) else None
    if form != FORMAT:
        raise ValueError(f"{path} has format {form!r}, this version reads {FORMAT}")
    if hashlib.sha256(data).hexdigest() != index.get("sha256"):
        raise ValueError(
            f"{Path(folder) / TENSOR_FILE} is damaged, or of another save than {INDEX_FILE}; save the adapter again"
        )
    try:
        tensors = load(data)
        modules = {name: tensors.pop(name) for name in index["modules"]}
        base = AdapterBase(**index["base"], tensors={name: tensors.pop(f"{BASE}{name}") for name in modules})
        counts = {str(name): int(count) for name, count in index["neurons"].items()}
        if not counts or min(counts.values()) < 1 or not counts.keys() <= base.widths.keys():
            raise ValueError(f"neurons are {index['neurons']}")
        _require_base(base)
    except Exception as error:  # safetensors has an error class of its own
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return Adapter(base, counts, tensors, modules)


def _require_base(base: AdapterBase) -> None:
    """Raises ValueError for a base that no model can have had."""
    for name, width in base.widths.items():
        reserve = base.reserve.get(name, [])
        if type(width) is not int or width < 1 or not isinstance(base.activations.get(name), str):
            raise ValueError(f"width and activation of {name!r} are {width!r} and {base.activations.get(name)!r}")
        if not isinstance(reserve, list) or not all(type(slot) is int and 0 <= slot < width for slot in reserve):
            raise ValueError(f"the slots in reserve of {name!r} are {reserve!r}")
    if not isinstance(base.digests, dict):
        raise ValueError(f"digests are {base.digests!r}")
