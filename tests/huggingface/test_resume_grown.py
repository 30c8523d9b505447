"""A run that changes widths goes on with the model it started from, and as well with one loaded from its checkpoint."""

import pytest
import torch
from runs import GROWING, PRUNING, final_state, trainer_of
from tiny import tiny_batch, tiny_mlp, tiny_model
from transformers import AutoModelForAudioClassification

from hf_neuroplastic import (
    DropIn,
    DropInCallback,
    DropInConfig,
    NeuroPlastic,
    SideFileError,
    compact,
    reserve,
    resume_dropin,
    save_side_files,
)
from hf_neuroplastic.neurons.sites import find_sites

GRADED = DropInConfig.plasticity(
    5, prune=(0.4, 0.9), interval=1, maturity=1, young_plasticity=3.0, old_plasticity=0.5, consolidation=4
)
CONFIGS = {"grow": GROWING, "prune": PRUNING, "graded": GRADED}
CASES = [(name, "checkpoint") for name in CONFIGS] + [("graded", "start")]


@pytest.mark.parametrize(("name", "source"), CASES)
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_resuming_continues_bit_for_bit(tmp_path, family, name, source):
    config = CONFIGS[name]
    whole, whole_callback = trainer_of(tmp_path, family, config=config)
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    model = (
        AutoModelForAudioClassification.from_pretrained(checkpoint) if source == "checkpoint" else tiny_model(family)
    )
    callback = DropInCallback(config, resume_from=checkpoint)
    resumed, _ = trainer_of(tmp_path / "resumed", family, model=model, callback=callback)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected, found = final_state(whole, whole_callback), final_state(resumed, callback)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_training_arguments_may_name_the_checkpoint(tmp_path):
    first, _ = trainer_of(tmp_path, "ast", config=GROWING)
    first.train()
    checkpoint = str(tmp_path / "checkpoint-3")
    model = AutoModelForAudioClassification.from_pretrained(checkpoint)
    resumed, callback = trainer_of(tmp_path, "ast", model=model, config=GROWING, resume_from_checkpoint=checkpoint)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert [site.width for site in callback.dropin.sites] == [29, 29]


def _loop(config, steps, *, dropin=None, model=None, optimizer=None, state=None):
    model = model if model is not None else tiny_model("wav2vec2")
    optimizer = optimizer or NeuroPlastic(model.parameters(), lr=1e-3)
    dropin = dropin or DropIn(model, config, total_steps=8, state=state)
    dropin.scale_steps(optimizer)
    for step in steps:
        model(**tiny_batch("wav2vec2", seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    return model, dropin, optimizer


@pytest.mark.parametrize("config", [GROWING, GRADED], ids=["grow", "graded"])
def test_a_plain_loop_goes_on_too(tmp_path, config):
    whole, *_ = _loop(config, range(8))
    model, dropin, optimizer = _loop(config, range(4))
    model.save_pretrained(tmp_path)
    save_side_files(dropin, tmp_path)
    loaded = type(model).from_pretrained(tmp_path).train()
    again = NeuroPlastic(loaded.parameters(), lr=1e-3)
    again.load_state_dict(optimizer.state_dict())
    resumed = resume_dropin(loaded, tmp_path, total_steps=8)
    assert resumed.config == config  # the saved one
    _loop(config, range(4, 8), dropin=resumed, model=loaded, optimizer=again)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True))


def test_a_state_brings_its_widths():
    grown, dropin, _ = _loop(GROWING, range(2))
    state = dropin.state_dict()
    model = tiny_model("wav2vec2")
    resumed = DropIn(model, GROWING, total_steps=8, state=state)
    assert [site.width for site in resumed.sites] == [29, 29]
    assert model.config.intermediate_size == 29
    assert resumed.state_dict()["start_widths"] == [24, 24]
    model.load_state_dict(grown.state_dict())
    for known, saved in zip(resumed.statistics, dropin.statistics, strict=True):
        assert all(torch.equal(value, saved.state_dict()[name]) for name, value in known.state_dict().items())


def test_reserve_of_other_sizes_in_encoder_and_decoder_is_matched():
    first = tiny_model("whisper")
    reserve(first, 3, layers="encoder")
    reserve(first, 1, layers="decoder")
    state = DropIn(first).state_dict()
    model = tiny_model("whisper")
    resumed = DropIn(model, state=state)
    assert [site.width for site in resumed.sites] == [27, 27, 21, 21]
    assert (model.config.encoder_ffn_dim, model.config.decoder_ffn_dim) == (27, 21)


def test_a_wider_model_is_refused_and_left_alone(tmp_path):
    save_side_files(DropIn(tiny_model("ast")), tmp_path)
    model = tiny_model("ast")
    reserve(model, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        SideFileError, match=r"layers\.0\.mlp' has 26 neurons.*had 24; load the model from the checkpoint"
    ):
        resume_dropin(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._load_state_dict_pre_hooks


def test_a_state_of_other_widths_says_how_to_take_it_over():
    wide = tiny_mlp()
    reserve(wide, 2)
    with pytest.raises(
        ValueError, match=r"has 10 neurons, but the state is of 12.*DropIn\(model, config, state=\.\.\.\)"
    ):
        DropIn(tiny_mlp()).load_state_dict(DropIn(wide).state_dict())


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_forgetting_where_to_resume_from_is_said(tmp_path, family):
    first, _ = trainer_of(tmp_path, family, config=GROWING)
    first.train()
    checkpoint = str(tmp_path / "checkpoint-3")
    model = AutoModelForAudioClassification.from_pretrained(checkpoint)
    resumed, _ = trainer_of(tmp_path, family, model=model, config=GROWING)
    with pytest.raises(
        ValueError, match=r"has 34 neurons, but the weights to be loaded have 29.*resume_from=checkpoint"
    ):
        resumed.train(resume_from_checkpoint=checkpoint)


def test_resumed_neurons_do_not_begin_a_new_training(tmp_path):
    first, _ = trainer_of(tmp_path, "ast", config=GROWING)
    first.train()
    callback = DropInCallback(GROWING, resume_from=tmp_path / "checkpoint-3")
    again, _ = trainer_of(tmp_path / "again", "ast", callback=callback)
    with pytest.raises(
        ValueError, match=r"resumed from .*checkpoint-3, but training starts at step 0.*resume_from_check"
    ):
        again.train()


def test_a_resumed_run_can_be_compacted():
    first, dropin, _ = _loop(PRUNING, range(8))
    model = tiny_model("wav2vec2")
    resumed = DropIn(model, PRUNING, total_steps=8, state=dropin.state_dict())
    model.load_state_dict(first.state_dict())
    resumed.unpatch()
    assert compact(model) == 24
    assert [site.width for site in find_sites(model)] == [12, 12]
