"""What steers future decisions, in two files of its own beside a checkpoint: neuroplastic.safetensors and neuroplastic.json.

The checkpoint itself is the stock model's. The JSON names the sites and holds the digest of the tensor file, so that a pair
that does not belong together, or was cut short, is refused as a whole. It also holds a fingerprint of every weight and
optimizer file beside it, so that a folder into which a second run began to write is not called whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import nn

from ..neurons.config import DropInConfig
from ..neurons.dropin import DropIn

TENSOR_FILE = "neuroplastic.safetensors"
INDEX_FILE = "neuroplastic.json"
TRAINER_STATE = "trainer_state.json"  # Trainer's own, which it writes last
FORMAT = 3  # 2 knew nothing of the files beside; 1 kept two more averages per neuron, and other names of settings
BLOCKS, BLOCK = 64, 4096  # of a fingerprint


class SideFileError(ValueError):
    """The files beside a checkpoint are missing, damaged, or of another model. Nothing has been restored."""


def save_side_files(dropin: DropIn, folder: str | os.PathLike[str]) -> str:
    """Writes the state of `dropin` into `folder`, and returns the digest of it.

    Each file is written in one piece: a killed run leaves no half file behind. Write weights and optimizer state before.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = dropin.state_dict()
    tensors = {
        f"{site}/{name}": tensor.cpu().contiguous()
        for site, group in state["sites"].items()
        for name, tensor in group.items()
    }
    data = save(tensors)
    index = {
        "format": FORMAT,
        "step_count": state["step_count"],
        "events": state["events"],
        "start_widths": state["start_widths"],
        "sites": {site: {"width": group["age"].numel()} for site, group in state["sites"].items()},
        "config": state["config"],
        "sha256": hashlib.sha256(data).hexdigest(),
        "files": {path.name: fingerprint(path) for path in _files_beside(folder)},
    }
    content = json.dumps(index, indent=2, allow_nan=False).encode()
    write_whole(folder / TENSOR_FILE, data)
    write_whole(folder / INDEX_FILE, content)
    return hashlib.sha256(content).hexdigest()


def digest_of(folder: Path) -> str:
    """Of the side files in `folder`, as `save_side_files` returned it."""
    return hashlib.sha256((folder / INDEX_FILE).read_bytes()).hexdigest()


def fingerprint(path: Path) -> str:
    """Of a file: its size and up to 64 blocks spread over it, which costs no more for a large file."""
    size = path.stat().st_size
    seen = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * index // (BLOCKS - 1))
            seen.update(file.read(BLOCK))
    return seen.hexdigest()


def _files_beside(folder: Path) -> list[Path]:
    """Weights and optimizer state: what is written once, by one process."""
    names = (path for ending in ("safetensors", "bin", "pt") for path in sorted(folder.glob(f"*.{ending}")))
    return [path for path in names if path.name != TENSOR_FILE]


def load_side_files(dropin: DropIn, folder: str | os.PathLike[str]) -> None:
    """Brings `dropin` to the state saved in `folder`, or leaves it as it is and raises.

    Raises:
        SideFileError: a file is missing, truncated or altered, or its sites are not those of `dropin`.
    """
    _, state = _read_state(Path(folder))
    with _naming(folder):
        dropin.load_state_dict(state)


def resume_dropin(
    model: nn.Module,
    folder: str | os.PathLike[str],
    config: DropInConfig | None = None,
    *,
    total_steps: int | Literal["trainer"] | None = None,
) -> DropIn:
    """A DropIn on `model` that goes on where the one saved in `folder` was.

    The model may be the one that run started with or one loaded from its checkpoint; it gets the widths of the run and no
    more. Its weights are its own: load them from the checkpoint, before or after.

    Args:
        config: of the run; None takes the saved one.
        total_steps: as in DropIn.

    Raises:
        SideFileError: a file is missing, truncated or altered, or of another model; the model is unchanged then.
    """
    folder = Path(folder)
    index, state = _read_state(folder)
    if config is None:
        config = _saved_config(index, folder)
    with _naming(folder):
        return DropIn(model, config, total_steps=total_steps, state=state)


def _saved_config(index: dict[str, Any], folder: Path) -> DropInConfig:
    try:
        return DropInConfig.from_dict(index["config"])
    except (TypeError, ValueError) as error:
        raise SideFileError(
            f"the configuration in {folder / INDEX_FILE} cannot be used: {error}; pass config=DropInConfig(...) of the run"
        ) from None


def _read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index as it is, and the DropIn's state dict."""
    index, data = _read_pair(folder)
    sites: dict[str, dict[str, torch.Tensor]] = {name: {} for name in index["sites"]}
    try:
        tensors = load(data)
    except Exception as error:  # safetensors has an error class of its own
        raise SideFileError(f"{folder / TENSOR_FILE} is damaged: {error}; resume from an earlier checkpoint") from None
    for key, tensor in tensors.items():
        site, _, name = key.rpartition("/")
        sites.setdefault(site, {})[name] = tensor
    return index, {**{name: index[name] for name in ("step_count", "events", "start_widths")}, "sites": sites}


@contextlib.contextmanager
def _naming(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise SideFileError(
            f"{folder} holds the neuron statistics of another model, width or selection of layers: {error}"
        ) from None


def last_whole_checkpoint(folder: str | os.PathLike[str], *, side_files: bool = True) -> Path | None:
    """The latest checkpoint in a Trainer's output folder that was saved to its end, or None.

    Trainer writes trainer_state.json last, and DropInCallback the side files just before. Whole are checkpoints whose side
    files are of these weights and of this trainer_state.json. Trainer's own search takes the highest number, which after a
    killed run may be a checkpoint that was being written, or one into which a second run began to write.

    side_files: False for a run without DropIn, or one that is to go on with new neuron statistics (resume_from=False).
    """
    numbered = {}
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit():
            numbered[int(number)] = path
    for step in sorted(numbered, reverse=True):
        try:
            _require_whole(numbered[step], side_files)
        except (SideFileError, OSError, ValueError, RecursionError):
            continue
        return numbered[step]
    return None


def _require_whole(folder: Path, side_files: bool) -> None:
    """Raises SideFileError, OSError, ValueError or RecursionError where a checkpoint is not whole."""
    state = json.loads((folder / TRAINER_STATE).read_bytes())
    if not isinstance(state, dict):
        raise SideFileError(f"{folder / TRAINER_STATE} is damaged")
    if side_files:
        index, _ = _read_pair(folder)
        if any(fingerprint(folder / name) != mark for name, mark in index["files"].items()):
            raise SideFileError(f"{folder} holds weights of another save than its side files")
        if digest_of(folder) not in saved_by(state.get("stateful_callbacks")):
            raise SideFileError(f"{folder} holds side files of another save than its {TRAINER_STATE}")


def saved_by(callbacks: Any) -> dict[str, str]:
    """Digests of side files that a Trainer's `stateful_callbacks` name, and the folders these were written to."""
    entries = callbacks.values() if isinstance(callbacks, dict) else ()
    each = [part for entry in entries for part in (entry if isinstance(entry, list) else [entry])]
    told = (part.get("attributes") for part in each if isinstance(part, dict))
    return {str(a["saved"]): str(a.get("folder", "")) for a in told if isinstance(a, dict) and "saved" in a}


def _read_pair(folder: Path) -> tuple[dict[str, Any], bytes]:
    index = _read_index(folder / INDEX_FILE)
    try:
        data = (folder / TENSOR_FILE).read_bytes()
    except OSError as error:
        raise SideFileError(
            f"{folder / TENSOR_FILE} cannot be read: {error.strerror}; the checkpoint is incomplete"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != index["sha256"]:
        raise SideFileError(
            f"{folder / TENSOR_FILE} is damaged or of another save: its SHA-256 is {digest[:12]}..., {INDEX_FILE} says "
            f"{index['sha256'][:12]}...; resume from an earlier checkpoint"
        )
    return index, data


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_bytes())
    except OSError as error:
        raise SideFileError(
            f"{path} cannot be read: {error.strerror}; this checkpoint was saved without DropIn or is incomplete"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SideFileError(f"{path} is damaged: {error}; resume from an earlier checkpoint") from None
    form = index.get("format") if isinstance(index, dict) else None
    if type(form) is int and form != FORMAT:
        fix = "upgrade hf-neuroplastic" if form > FORMAT else "train anew, or pass resume_from=False"
        raise SideFileError(f"{path} has format {form}, this version reads {FORMAT}; {fix}")
    for name, kind in {
        "format": int,
        "step_count": int,
        "events": int,
        "start_widths": list,
        "sites": dict,
        "config": dict,
        "sha256": str,
        "files": dict,
    }.items():
        if not isinstance(index, dict) or not isinstance(index.get(name), kind):
            raise SideFileError(
                f"{path} is damaged: {name!r} must be of type {kind.__name__}; resume from an earlier checkpoint"
            )
    return index


def write_whole(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
