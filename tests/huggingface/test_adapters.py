"""PEFT beside DropIn: adapters on attention, plain feed-forward layers that learn, checkpoints that both can read."""

import pytest
import torch
from runs import BUSY, trainer_of
from tiny import tiny_batch, tiny_model

from hf_neuroplastic import DropIn
from hf_neuroplastic.huggingface.checkpoint import INDEX_FILE

peft = pytest.importorskip("peft")


def adapted(**settings):
    config = peft.LoraConfig(r=2, **{"target_modules": ["q_proj", "v_proj"], **settings})
    return peft.get_peft_model(tiny_model("wav2vec2"), config)


def test_feed_forward_layers_that_were_unfrozen_are_watched_beside_adapters(tmp_path):
    model = adapted()
    for name, parameter in model.named_parameters():
        if "feed_forward" in name:
            parameter.requires_grad_(True)
    trainer, callback = trainer_of(tmp_path, model=model)
    trainer.train()
    assert len(callback.dropin.sites) == 2
    assert min(map(int, callback.dropin.replaced)) > 0
    checkpoint = tmp_path / "checkpoint-6"
    assert (checkpoint / INDEX_FILE).is_file()
    assert (checkpoint / "adapter_model.safetensors").is_file()


def test_whole_feed_forward_layers_beside_adapters_are_saved_by_peft(tmp_path):
    model = adapted(modules_to_save=["feed_forward"])
    trainer, callback = trainer_of(tmp_path, model=model)
    trainer.train()
    assert min(map(int, callback.dropin.replaced)) > 0
    opened = peft.PeftModel.from_pretrained(tiny_model("wav2vec2"), tmp_path / "checkpoint-6")
    batch = tiny_batch("wav2vec2")
    with torch.no_grad():
        torch.testing.assert_close(opened.eval()(**batch).logits, model.eval()(**batch).logits)


def test_adapters_on_feed_forward_layers_are_refused_by_name():
    model = adapted(target_modules=["intermediate_dense", "output_dense"])
    with pytest.raises(TypeError, match=r"feed_forward' must be a plain torch.nn.Linear, got peft.*without adapters"):
        DropIn(model)


def test_a_model_whose_feed_forward_layers_are_frozen_by_peft_is_refused():
    with pytest.raises(ValueError, match="are frozen, and new neurons in them could not learn"):
        DropIn(adapted(), BUSY)
