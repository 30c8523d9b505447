"""DropIn and NeuroPlastic under the real Trainer."""

import json
import logging
import os
import time
from dataclasses import replace

import pytest
import torch
from runs import BUSY, GROWING, PRUNING, Samples, final_state, trainer_of
from tiny import tiny_batch, tiny_model
from transformers import AutoModelForAudioClassification, Trainer, TrainerCallback, TrainingArguments

from hf_neuroplastic import (
    DropIn,
    DropInCallback,
    DropInConfig,
    NeuroPlastic,
    SideFileError,
    last_whole_checkpoint,
    reserve,
)
from hf_neuroplastic.huggingface.checkpoint import INDEX_FILE, TENSOR_FILE, digest_of
from hf_neuroplastic.neurons.observe.hooks import is_watched
from hf_neuroplastic.neurons.operate.optimizers import Optimizers


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_training_replaces_neurons_and_leaves_a_stock_checkpoint(tmp_path, family, checkpointing, accumulation, caplog):
    model = tiny_model(family, **({"layerdrop": 0.1} if family == "wav2vec2" else {}))
    trainer, callback = trainer_of(
        tmp_path, family, model=model, gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing
    )
    trainer.train()
    assert callback.dropin.step_count == 6
    assert sum(int(count) for count in callback.dropin.replaced) > 0
    assert model.training
    model.eval()
    expected = model(**tiny_batch(family)).logits
    caplog.clear()
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.propagate = True
    for folder in (tmp_path / "checkpoint-6",):
        assert {TENSOR_FILE, INDEX_FILE} <= {path.name for path in folder.iterdir()}
        stock, info = AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        assert torch.equal(stock.eval()(**tiny_batch(family)).logits, expected)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "key" in r.getMessage().lower()]


@pytest.mark.parametrize("optimizer", [NeuroPlastic, torch.optim.AdamW])
@pytest.mark.parametrize("config", [BUSY, GROWING, PRUNING], ids=["replace", "grow", "prune"])
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_resuming_continues_bit_for_bit(tmp_path, family, config, optimizer):
    whole, whole_callback = trainer_of(tmp_path / "whole", family, optimizer=optimizer, config=config)
    whole.train()
    other = tiny_model(family)
    with torch.no_grad():
        for parameter in other.parameters():  # nothing of the new model may survive
            parameter.add_(1.0)
    resumed, callback = trainer_of(tmp_path / "whole", family, model=other, optimizer=optimizer, config=config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    expected, found = final_state(whole, whole_callback), final_state(resumed, callback)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_resuming_from_elsewhere_asks_where(tmp_path):
    first, _ = trainer_of(tmp_path / "first")
    first.train()
    moved = tmp_path / "moved"
    (tmp_path / "first" / "checkpoint-3").rename(moved)
    trainer, _ = trainer_of(tmp_path / "second")
    with pytest.raises(SideFileError, match=r"resumes at step 3.*resume_from"):
        trainer.train(resume_from_checkpoint=str(moved))
    trainer, callback = trainer_of(tmp_path / "second", callback=DropInCallback(BUSY, resume_from=moved))
    trainer.train(resume_from_checkpoint=str(moved))
    assert callback.dropin.step_count == 6


def test_neurons_and_weights_must_come_from_one_checkpoint(tmp_path):
    first, _ = trainer_of(tmp_path, save_steps=2)
    first.train()
    trainer, _ = trainer_of(tmp_path, callback=DropInCallback(BUSY, resume_from=tmp_path / "checkpoint-2"))
    with pytest.raises(SideFileError, match=r"resumes at step 4.*checkpoint-2 is of step 2.*resume_from"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_resume_from_must_be_a_folder():
    with pytest.raises(TypeError, match=r"resume_from must be .*got 3"):
        DropInCallback(BUSY, resume_from=3)


def test_attached_callbacks_log_through_thetrainer_of(tmp_path):
    trainer, callback = trainer_of(tmp_path)
    callback.attach(trainer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "neuro/dead_fraction" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert logged[-1]["neuro/replaced_total"] > 0
    assert json.dumps(trainer.state.log_history)


def test_a_callback_added_late_patches_when_training_begins(tmp_path):
    model = tiny_model("ast")
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1, disable_tqdm=True)
    trainer = Trainer(model, args, train_dataset=Samples("ast"))
    trainer.add_callback(DropInCallback(BUSY))
    trainer.train()
    (callback,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, DropInCallback)]
    assert callback.dropin.watches(model)
    assert callback.dropin.step_count == 1


def test_shares_of_training_are_taken_of_the_trainers_steps(tmp_path):
    config = DropInConfig(interval=1, start=0.5, stop=0.75, maturity=0, max_fraction=0.01, threshold=float("inf"))
    trainer, callback = trainer_of(tmp_path, config=config, max_steps=8)
    trainer.train()
    assert [int(count) for count in callback.dropin.replaced] == [4, 4]  # a pair at steps 4 and 5


def test_training_twice_starts_the_schedule_anew(tmp_path):
    trainer, callback = trainer_of(tmp_path, save_strategy="no")
    trainer.train()
    trainer.train()
    assert callback.dropin.step_count == 6


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"dropin must be a DropInConfig or a DropIn, got float"):
        DropInCallback(0.1)


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_optimizer_classes_are_accepted_too(tmp_path, family):
    """The way that FSDP and model_init need."""
    model = tiny_model(family)
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], max_steps=2, disable_tqdm=True, weight_decay=0.1
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=Samples(family),
        optimizer_cls_and_kwargs=(NeuroPlastic, {"lr": 1e-3, "base": "adamw"}),
    )
    trainer.train()
    groups = trainer.optimizer.optimizer.param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]


def test_models_that_trainer_makes_itself_are_patched_one_after_the_other(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=4, save_steps=2, disable_tqdm=True)
    callback, made = DropInCallback(BUSY), []

    def model_init():
        made.append(tiny_model("ast"))
        return made[-1]

    trainer = Trainer(model_init=model_init, args=args, train_dataset=Samples("ast"), callbacks=[callback])
    trainer.train()
    trainer.train()
    assert callback.dropin.watches(made[-1])
    assert callback.dropin.step_count == 4
    assert min(map(int, callback.dropin.replaced)) > 0
    assert not any(is_watched(model) for model in made[:-1])
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_trainer_makes_the_optimizer_by_class_and_options(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=4, disable_tqdm=True)
    callback = DropInCallback(BUSY)
    trainer = Trainer(
        model_init=lambda: tiny_model("ast"),
        args=args,
        train_dataset=Samples("ast"),
        callbacks=[callback],
        optimizer_cls_and_kwargs=(NeuroPlastic, {"lr": 1e-3, "weight_decay": 0.01}),
    )
    trainer.train()
    (inner,) = Optimizers(trainer.optimizer).found
    assert isinstance(inner, NeuroPlastic)
    assert min(map(int, callback.dropin.replaced)) > 0


def test_a_callback_of_another_trainer_is_refused(tmp_path):
    _, callback = trainer_of(tmp_path)
    with pytest.raises(RuntimeError, match="belongs to another Trainer"):
        trainer_of(tmp_path, model=tiny_model("wav2vec2"), callback=callback)


def test_a_dropin_of_another_model_is_refused(tmp_path):
    trainer, _ = trainer_of(tmp_path, callback=DropInCallback(DropIn(tiny_model("ast"), total_steps="trainer")))
    with pytest.raises(RuntimeError, match="watches another model"):
        trainer.train()


def test_a_dropin_that_two_callbacks_drive_is_refused(tmp_path):
    trainer, callback = trainer_of(tmp_path)
    trainer.add_callback(callback)
    with pytest.raises(RuntimeError, match="two DropInCallbacks drive one DropIn"):
        trainer.train()
    assert callback.dropin.step_count == 1


def test_callbacks_that_trainer_would_replace_are_refused(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], restore_callback_states_from_checkpoint=True)
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint=True"):
        Trainer(tiny_model("ast"), args, callbacks=[DropInCallback(BUSY)])


def test_a_checkpoint_without_statistics_may_be_resumed_with_new_ones(tmp_path):
    trainer, _ = trainer_of(tmp_path)
    trainer.train()
    for name in (TENSOR_FILE, INDEX_FILE):
        (tmp_path / "checkpoint-3" / name).unlink()
    trainer, _ = trainer_of(tmp_path)
    with pytest.raises(SideFileError, match="resume_from=False"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    trainer, callback = trainer_of(tmp_path, callback=DropInCallback(BUSY, resume_from=False))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert callback.dropin.step_count == 6
    assert all(int(known.age.max()) <= 3 for known in callback.dropin.statistics)


def test_a_stock_checkpoint_never_takes_the_statistics_of_another_run(tmp_path):
    stock, _ = trainer_of(tmp_path / "stock")
    stock.pop_callback(DropInCallback)
    stock.train()
    trainer, _ = trainer_of(tmp_path / "own")
    trainer.train()
    trainer, _ = trainer_of(tmp_path / "own")
    with pytest.raises(SideFileError, match=r"resumes at step 3.*resume_from=False"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "stock" / "checkpoint-3"))


def test_the_checkpoint_that_is_named_gives_the_statistics(tmp_path):
    ages = {}
    for name, seed in (("one", 1), ("two", 2)):
        trainer, callback = trainer_of(tmp_path / name, config=replace(BUSY, criterion="random", seed=seed))
        trainer.train()
        ages[name] = [known.age.clone() for known in callback.dropin.statistics]
    assert not all(torch.equal(a, b) for a, b in zip(*ages.values(), strict=True))
    trainer, callback = trainer_of(tmp_path / "two", config=BUSY, max_steps=7)
    trainer.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-6"))
    found = [(known.age >= age).all() for known, age in zip(callback.dropin.statistics, ages["one"], strict=True)]
    assert all(found)
    (tmp_path / "one" / "checkpoint-6").rename(tmp_path / "moved")
    trainer, callback = trainer_of(tmp_path / "two", config=BUSY, max_steps=7)
    with pytest.raises(SideFileError, match="the checkpoint is of another run than"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "moved"))
    trainer, callback = trainer_of(
        tmp_path / "two", max_steps=7, callback=DropInCallback(BUSY, resume_from=tmp_path / "moved")
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "moved"))


def test_a_checkpoint_is_whole_before_older_ones_are_removed(tmp_path):
    trainer, _ = trainer_of(tmp_path, save_steps=1, save_total_limit=1)
    found = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            found.append((last_whole_checkpoint(tmp_path), len(list(tmp_path.glob("checkpoint-*")))))

    trainer.callback_handler.callbacks.insert(0, Look())
    trainer.train()
    assert found == [(tmp_path / f"checkpoint-{step}", 1) for step in range(1, 7)]


@pytest.mark.parametrize("config", [GROWING, PRUNING], ids=["grow", "prune"])
def test_flags_follow_the_weights_of_the_best_checkpoint(tmp_path, config):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer, callback = trainer_of(tmp_path, config=config, metric_for_best_model="score", **steps)
    trainer.compute_metrics = lambda _: {"score": -trainer.state.global_step}  # the first step is the best
    trainer.train()
    for known in callback.dropin.watched:
        live = (known.site.up.weight != 0).any(1) | (known.site.down.weight != 0).any(0)
        assert torch.equal(known.statistics.active, live)


@pytest.mark.parametrize("name", ["run-0", "lr3e-4"])
def test_the_folder_of_a_trial_gets_the_side_files(tmp_path, name):
    trainer, _ = trainer_of(tmp_path)
    trainer._get_output_dir = lambda trial=None: str(tmp_path / name)  # as hyper-parameter search does
    trainer.train()
    assert last_whole_checkpoint(tmp_path / name) == tmp_path / name / "checkpoint-6"


def test_growth_with_adapters_is_refused_at_once(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["feed_forward"])
    model = peft.get_peft_model(tiny_model("wav2vec2"), lora)
    before = {name: value.shape for name, value in model.state_dict().items()}
    for change in (lambda: DropIn(model, GROWING, total_steps=4), lambda: reserve(model, 2)):
        with pytest.raises(ValueError, match=r"adapters \(PEFT\) cannot change.*merge_and_unload"):
            change()
    assert {name: value.shape for name, value in model.state_dict().items()} == before
    DropIn(model, BUSY)


def test_a_schedule_without_events_is_said(tmp_path, caplog):
    trainer, _ = trainer_of(tmp_path, config=DropInConfig())
    trainer.train()
    assert "no neuron will be replaced" in caplog.text


@pytest.mark.parametrize(("strategy", "steps"), [("no", []), ("epoch", [4, 6])])
def test_the_trainers_logging_strategy_is_kept(tmp_path, strategy, steps):
    trainer, callback = trainer_of(tmp_path, logging_strategy=strategy)
    callback.attach(trainer)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "neuro/dead_fraction" in entry] == steps


def test_only_the_main_process_writes_side_files(tmp_path):
    trainer, callback = trainer_of(tmp_path)
    (tmp_path / "checkpoint-0").mkdir()
    assert callback.state()["attributes"] == {}  # no training is under way
    for main, age in ((False, 0), (True, 3600), (True, 0)):
        trainer.state.is_world_process_zero = main
        callback.on_epoch_end(trainer.args, trainer.state, trainer.control)
        os.utime(tmp_path / "checkpoint-0", (time.time() - age,) * 2)  # an old one is of another run
        assert not list((tmp_path / "checkpoint-0").iterdir())
        told = callback.state()["attributes"]
    assert len(list((tmp_path / "checkpoint-0").iterdir())) == 2
    assert told == {"saved": digest_of(tmp_path / "checkpoint-0"), "folder": str(tmp_path / "checkpoint-0")}
