"""load_state_dict takes what save_pretrained wrote."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, tiny_model

from hf_neuroplastic import accept_saved_keys


def _other(family):
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_names_on_disk_are_taken(family, shards, tmp_path):
    model, other = tiny_model(family), _other(family)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    handle = accept_saved_keys(other)
    names = list(saved)
    for start in range(shards):
        other.load_state_dict({name: saved[name] for name in names[start::shards]}, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    handle.remove()
    assert not other._load_state_dict_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precision_is_kept_and_own_names_are_loaded_as_ever(dtype, tmp_path):
    model, other = tiny_model("ast").to(dtype), _other("ast").to(dtype)
    accept_saved_keys(other)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    model.save_pretrained(tmp_path)
    again = _other("ast").to(dtype)
    accept_saved_keys(again)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_unknown_names_are_still_reported():
    model = tiny_model("ast")
    accept_saved_keys(model)
    result = model.load_state_dict({"elsewhere": torch.zeros(2)}, strict=False)
    assert result.unexpected_keys == ["elsewhere"]
    with pytest.raises(RuntimeError, match="elsewhere"):
        model.load_state_dict({**model.state_dict(), "elsewhere": torch.zeros(2)})
