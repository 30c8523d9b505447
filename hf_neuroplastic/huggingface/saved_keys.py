"""Lets `load_state_dict` take the key names that `save_pretrained` writes.

transformers renames some models' parameters between memory and disk (AST and ViT among them). `from_pretrained` knows both,
but Trainer resumes with a plain, non-strict `load_state_dict`, which silently leaves most of such a model at its initial
values (seen in transformers 5.23). With the hook of this file a run resumes with what was saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


def accept_saved_keys(model: nn.Module) -> RemovableHandle:
    """From now on `model.load_state_dict` also takes a state dict (or a shard of one) with the names used on disk.

    Names that are the model's own are loaded as ever. The returned handle's `remove()` takes the hook away.
    """
    return model.register_load_state_dict_pre_hook(_rename)


def _rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    own = module.state_dict().keys()
    if prefix or not isinstance(module, PreTrainedModel) or state_dict.keys() <= own or own <= state_dict.keys():
        return
    renamed = _as_from_pretrained(module, state_dict)
    state_dict.clear()
    state_dict.update(renamed)


def _as_from_pretrained(model: PreTrainedModel, saved: dict[str, Any]) -> dict[str, Tensor]:
    """What from_pretrained makes of `saved`, under the names in memory; what it does not know keeps its name."""
    dtypes = {value.dtype for value in saved.values() if isinstance(value, Tensor) and value.is_floating_point()}
    loader: Any = type(model).from_pretrained
    twin, info = loader(
        None,
        config=model.config,
        state_dict=dict(saved),
        dtype=max(dtypes, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float32),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    loaded = {name: value for name, value in twin.state_dict().items() if name not in info["missing_keys"]}
    # What has another shape keeps it: load_state_dict is to refuse it, under the name in memory.
    misshapen = {name: torch.empty(shape, device="meta") for name, shape, _ in info["mismatched_keys"]}
    return loaded | misshapen | {name: saved[name] for name in info["unexpected_keys"]}
