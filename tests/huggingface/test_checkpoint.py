"""The side files restore everything or nothing."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model

from hf_neuroplastic import (
    DropIn,
    DropInConfig,
    SideFileError,
    last_whole_checkpoint,
    load_side_files,
    resume_dropin,
    save_side_files,
)
from hf_neuroplastic.huggingface.checkpoint import INDEX_FILE, TENSOR_FILE

FILES = (TENSOR_FILE, INDEX_FILE)


def _watched(steps=3, **settings):
    model = tiny_model("ast")
    settings = {"interval": 1, "maturity": 1, "threshold": float("inf"), "stop": None, **settings}
    dropin = DropIn(model, DropInConfig(**settings))
    for seed in range(steps):
        model(**tiny_batch("ast", seed=seed)).loss.backward()
        dropin.step()
    return dropin


def _equal(a, b):
    return a["step_count"] == b["step_count"] and all(
        torch.equal(value, b["sites"][site][name])
        for site, group in a["sites"].items()
        for name, value in group.items()
    )


def test_round_trip(tmp_path):
    dropin, fresh = _watched(), _watched(0)
    save_side_files(dropin, tmp_path / "new" / "folder")
    load_side_files(fresh, tmp_path / "new" / "folder")
    assert _equal(dropin.state_dict(), fresh.state_dict())
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(FILES)
    saved = json.loads((tmp_path / "new" / "folder" / INDEX_FILE).read_text())["config"]
    assert DropInConfig.from_dict(saved) == dropin.config


def test_side_files_of_an_older_version_are_read(tmp_path):
    dropin, fresh = _watched(), _watched(0)
    save_side_files(dropin, tmp_path)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    for name in ("young_plasticity", "old_plasticity", "consolidation"):
        del index["config"][name]
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    load_side_files(fresh, tmp_path)
    assert _equal(dropin.state_dict(), fresh.state_dict())
    assert resume_dropin(tiny_model("ast"), tmp_path).config == dropin.config


def test_saving_again_replaces_the_pair(tmp_path):
    save_side_files(_watched(1), tmp_path)
    later = _watched(3)
    save_side_files(later, tmp_path)
    fresh = _watched(0)
    load_side_files(fresh, tmp_path)
    assert fresh.step_count == 3


def _flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "flipped", "older"])
def test_damage_is_refused_and_nothing_is_restored(tmp_path, name, damage):
    save_side_files(_watched(), tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "older":
        save_side_files(_watched(1), tmp_path / "older")
        path.write_bytes((tmp_path / "older" / name).read_bytes())
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "flipped": _flip(data)}[damage])
    dropin = _watched(2)
    before = dropin.state_dict()
    with pytest.raises(SideFileError, match=name):
        load_side_files(dropin, tmp_path)
    assert _equal(before, dropin.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99.*upgrade"),
        ({"format": 1}, "format 1, this version reads 3; train anew.*resume_from=False"),
        ({"sites": None}, "damaged: 'sites' must be of type dict"),
        ({"step_count": "x"}, "damaged: 'step_count' must be of type int"),
        ({"sites": {"elsewhere": {"width": 3}}}, "another model, width or selection of layers"),
    ],
)
def test_an_index_of_another_kind_is_refused(tmp_path, change, words):
    save_side_files(_watched(), tmp_path)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    (tmp_path / INDEX_FILE).write_text(json.dumps({**index, **change}))
    with pytest.raises(SideFileError, match=words):
        load_side_files(_watched(0), tmp_path)


def test_an_index_of_an_older_form_is_named_as_that(tmp_path):
    save_side_files(_watched(1), tmp_path)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    del index["files"]
    (tmp_path / INDEX_FILE).write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(SideFileError, match="has format 2, this version reads 3"):
        resume_dropin(tiny_model("ast"), tmp_path)


def test_another_models_files_are_refused(tmp_path):
    save_side_files(_watched(), tmp_path)
    with pytest.raises(SideFileError, match=r"another model, width or selection of layers.*'0'"):
        load_side_files(DropIn(tiny_mlp()), tmp_path)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_pair(tmp_path, monkeypatch, broken):
    save_side_files(_watched(1), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        save_side_files(_watched(3), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_last_whole_checkpoint_is_found(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 20, 100):
        _checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-300").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-100" / INDEX_FILE).unlink()
    (tmp_path / "checkpoint-20" / TENSOR_FILE).write_bytes(b"")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-9"


def _checkpoint(folder, weights=b"weights" * 10_000):
    """As Trainer and DropInCallback leave one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    digest = save_side_files(_watched(1), folder)
    state = {"stateful_callbacks": {"DropInCallback": {"args": {}, "attributes": {"saved": digest}}}}
    (folder / "trainer_state.json").write_text(json.dumps(state))


SPOILT = {
    "other weights": lambda folder: (folder / "model.safetensors").write_bytes(b"weights" * 9_999 + b"another"),
    "weights cut short": lambda folder: (folder / "model.safetensors").write_bytes(b"weights" * 9_000),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no trainer state": lambda folder: (folder / "trainer_state.json").unlink(),
    "a list": lambda folder: (folder / "trainer_state.json").write_text("[]"),
    "a trainer state of another save": lambda folder: (folder / "trainer_state.json").write_text(
        (folder / "trainer_state.json").read_text().replace('"saved": "', '"saved": "0')
    ),
    "odd callbacks": lambda folder: (folder / "trainer_state.json").write_text('{"stateful_callbacks": [1, {"a": 2}]}'),
    "deep JSON": lambda folder: (folder / "trainer_state.json").write_text("[" * 100_000),
    "deep index": lambda folder: (folder / INDEX_FILE).write_text("[" * 100_000),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_folder_that_mixes_two_saves_is_not_whole(tmp_path, spoil):
    _checkpoint(tmp_path / "checkpoint-1")
    _checkpoint(tmp_path / "checkpoint-2")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    spoil(tmp_path / "checkpoint-2")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


FORGED = {
    "negative age": ("age", lambda value: value - 1000),
    "NaN scale": ("scale", lambda value: value * float("nan")),
    "infinite average": ("averages", lambda value: value + float("inf")),
    "negative magnitude": ("averages", lambda value: value - 1),
    "weight above one": ("weight", lambda value: value + 2),
    "negative count": ("replaced", lambda value: value - 1000),
}


@pytest.mark.parametrize(("name", "forge"), FORGED.values(), ids=FORGED)
def test_numbers_that_no_training_leaves_are_refused(tmp_path, name, forge):
    dropin = _watched(2)
    state = dropin.state_dict()
    group = next(iter(state["sites"].values()))
    group[name] = forge(group[name])
    save_side_files(SimpleNamespace(state_dict=lambda: state), tmp_path)
    before = dropin.state_dict()
    with pytest.raises(SideFileError, match=name):
        load_side_files(dropin, tmp_path)
    for site, values in dropin.state_dict()["sites"].items():
        assert all(torch.equal(value, before["sites"][site][key]) for key, value in values.items())


@pytest.mark.parametrize("config", [{"interval": "x"}, {"interval": 0}, {"no such field": 1}])
def test_a_saved_configuration_that_cannot_be_used_is_named(tmp_path, config):
    save_side_files(_watched(), tmp_path)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    (tmp_path / INDEX_FILE).write_text(json.dumps({**index, "config": config}))
    with pytest.raises(SideFileError, match=rf"configuration.*{INDEX_FILE}.*config=DropInConfig"):
        resume_dropin(tiny_model("ast"), tmp_path)
    resume_dropin(tiny_model("ast"), tmp_path, DropInConfig())
