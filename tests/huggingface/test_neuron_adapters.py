"""Neurons kept apart: attach(save(grown)) = grown, detach(attach(base)) = base bit for bit, whatever the layer."""

import copy
import json
import logging

import pytest
import torch
from kinds import KINDS, Kind, snapshot
from runs import trainer_of
from safetensors.torch import load_file
from tiny import FAMILIES, MORE_FAMILIES, tiny_batch, tiny_mlp, tiny_model
from torch import nn
from transformers import TrainerCallback

from hf_neuroplastic import (
    AdapterBase,
    DropIn,
    DropInConfig,
    NeuroPlastic,
    attach_neurons,
    detach_neurons,
    grow,
    only_new_neurons,
    reserve,
    save_neurons,
)
from hf_neuroplastic.huggingface.neuron_adapter_files import INDEX_FILE, TENSOR_FILE
from hf_neuroplastic.neurons.sites import find_sites


def _batch_norm():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())


GROWING = {
    **{family: Kind(lambda family=family: tiny_model(family), family) for family in (*FAMILIES, *MORE_FAMILIES)},
    **{name: KINDS[name] for name in ("llama", "gemma", "qwen3", "convolutions")},
    "mlp": Kind(tiny_mlp, (4, 6)),
    "batch_norm": Kind(_batch_norm, (3, 3, 7, 7)),
}
ADAPTER = DropInConfig.adapter(5, interval=1)


@torch.no_grad()
def teach(model, base, count=3, *, layers=None, seed=0, scale=0.3):
    """Grows neurons and gives them weights, as training would."""
    grow(model, count, layers=layers, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for site in find_sites(model):
        for part in site.slices if layers is None or site.name in layers else ():
            new = part.tensor.narrow(part.dim, site.width - count, count)
            new.add_(scale * torch.randn(new.shape, generator=generator).to(new).abs())
    return base


@torch.no_grad()
def outputs(kind, model, seed=0):
    return kind.outputs(model.eval(), seed)


def same_state(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def adapter_of(model, folder, count=3, *, layers=None, seed=0, **whole):
    """Grows an adapter on a copy of `model`, saves it, and returns the copy."""
    grown = copy.deepcopy(model)
    base = AdapterBase.of(grown, **whole)
    teach(grown, base, count, layers=layers, seed=seed)
    for index, name in enumerate(base.tensors):
        parameter = grown.get_parameter(name)
        parameter.data += 0.1 * (index + seed + 1)
    save_neurons(grown, folder, base)
    return grown


@pytest.mark.parametrize("name", GROWING)
def test_attached_is_grown_and_detached_is_the_base(name, tmp_path):
    kind = GROWING[name]
    model = kind.build().eval()
    untouched = outputs(kind, model)
    before, config = snapshot(model), copy.deepcopy(getattr(model, "config", None))
    grown = adapter_of(model, tmp_path / "a")
    count = attach_neurons(model, tmp_path / "a")
    assert count == 3 * len(find_sites(model))
    assert torch.equal(outputs(kind, model), outputs(kind, grown))
    assert not torch.allclose(outputs(kind, model), untouched)
    assert [site.width for site in find_sites(model)] == [site.width for site in find_sites(grown)]
    assert detach_neurons(model, tmp_path / "a") == count
    assert same_state(model, before)
    assert torch.equal(outputs(kind, model), untouched)
    if config is not None:
        assert model.config.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("family", "whole"), [("wav2vec2", ()), ("ast", ("classifier",)), ("whisper", ()), ("bert", ())]
)
def test_what_a_trainer_grew_is_kept_apart(family, whole, tmp_path):
    model = tiny_model(family)
    stock, before = copy.deepcopy(model), snapshot(model)
    base = only_new_neurons(model, modules=whole)
    trainer, callback = trainer_of(tmp_path, family, model=model, config=ADAPTER)
    trainer.train()
    count = save_neurons(model, tmp_path / "a", base)  # the model is still watched
    assert count == 5 * len(callback.dropin.sites)
    callback.dropin.unpatch()
    learnt = [part.view.select(part.dim, -1) for site in callback.dropin.sites for part in site.outgoing]
    assert all(bool(column.any()) for column in learnt)
    attach_neurons(stock, tmp_path / "a")
    batch = tiny_batch(family)
    with torch.no_grad():
        assert torch.equal(stock.eval()(**batch).logits, model.eval()(**batch).logits)
    stock.save_pretrained(tmp_path / "merged")
    merged = type(stock).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, model(**batch).logits)
    for each in (stock, merged):
        detach_neurons(each, tmp_path / "a")
        assert same_state(each, before)


def test_an_adapter_is_small_and_holds_the_new_neurons_alone(tmp_path):
    model = tiny_model("wav2vec2")
    adapter_of(model, tmp_path / "a")
    names = {
        name for name in dict(model.named_parameters()) if "feed_forward" in name and "output_dense.bias" not in name
    }
    held = load_file(tmp_path / "a" / TENSOR_FILE)
    assert held.keys() == names
    assert sum(value.numel() for value in held.values()) == 2 * 3 * (16 + 1 + 16)
    index = json.loads((tmp_path / "a" / INDEX_FILE).read_text())
    assert set(index["base"]["activations"].values()) == {"GELUActivation"}
    assert set(index["neurons"].values()) == {3}


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "llama", "convolutions", "batch_norm"])
def test_adapters_stack_in_any_order_and_each_can_go_first(name, tmp_path):
    kind = GROWING[name]
    model = kind.build().eval()
    before = snapshot(model)
    for seed, folder in enumerate("ab"):
        adapter_of(model, tmp_path / folder, 2 + seed, seed=seed + 1)
    found = []
    for order in ("ab", "ba"):
        for folder in order:
            attach_neurons(model, tmp_path / folder)
        found.append(outputs(kind, model))
        detach_neurons(model, tmp_path / "a")
        alone = copy.deepcopy(model)
        detach_neurons(model, tmp_path / "b")
        assert same_state(model, before)
        other = kind.build().eval()
        attach_neurons(other, tmp_path / "b")
        assert torch.equal(outputs(kind, alone), outputs(kind, other))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_layers_that_did_not_grow_get_reserve_and_lose_it(tmp_path):
    model = tiny_model("wav2vec2").eval()
    before, names = snapshot(model), [site.name for site in find_sites(model)]
    first = adapter_of(model, tmp_path / "a", 4, layers=names[:1], seed=1)
    second = adapter_of(model, tmp_path / "b", 3, layers=names[1:], seed=2)
    assert attach_neurons(model, tmp_path / "a") == 4
    assert model.config.intermediate_size == 28
    batch = tiny_batch("wav2vec2")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, first.eval()(**batch).logits)
    attach_neurons(model, tmp_path / "b")  # into the slots in reserve
    assert model.config.intermediate_size == 28
    detach_neurons(model, tmp_path / "a")
    assert model.config.intermediate_size == 27
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, second.eval()(**batch).logits)
    detach_neurons(model, tmp_path / "b")
    assert same_state(model, before)
    assert model.config.intermediate_size == 24


def test_an_adapter_on_top_of_another(tmp_path):
    """The second one's base is the first base with the first adapter."""
    model = tiny_model("ast").eval()
    before, name = snapshot(model), find_sites(model)[0].name
    adapter_of(model, tmp_path / "a", 4, layers=[name], seed=1)
    attach_neurons(model, tmp_path / "a")
    between = snapshot(model)
    top = adapter_of(model, tmp_path / "b", 3, seed=2)
    attach_neurons(model, tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(model(**tiny_batch("ast")).logits, top.eval()(**tiny_batch("ast")).logits)
    with pytest.raises(ValueError, match=r"28 neurons in .*, the model has 24: another base"):
        attach_neurons(tiny_model("ast"), tmp_path / "b")
    detach_neurons(model, tmp_path / "b")
    assert same_state(model, between)
    detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


@pytest.mark.parametrize("name", ["wav2vec2", "batch_norm"])
def test_a_base_with_slots_in_reserve_keeps_them(name, tmp_path):
    kind = GROWING[name]
    model = kind.build().eval()
    reserve(model, 2)
    before = snapshot(model)
    grown = adapter_of(model, tmp_path / "a")
    attach_neurons(model, tmp_path / "a")
    torch.testing.assert_close(outputs(kind, model), outputs(kind, grown))
    detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


def test_growth_into_the_reserve_of_the_base_is_an_adapter_too(tmp_path):
    model = tiny_model("ast")
    reserve(model, 5)
    stock, before = copy.deepcopy(model).eval(), snapshot(model)
    base = only_new_neurons(model)
    trainer_of(tmp_path, "ast", model=model, config=ADAPTER)[0].train()
    assert find_sites(model)[0].width == 29
    save_neurons(model, tmp_path / "a", base)
    attach_neurons(stock, tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(stock(**tiny_batch("ast")).logits, model.eval()(**tiny_batch("ast")).logits)
    detach_neurons(stock, tmp_path / "a")
    assert same_state(stock, before)


def test_a_classifier_is_exchanged_and_given_back(tmp_path):
    model = tiny_model("wav2vec2").eval()
    before, batch = snapshot(model), tiny_batch("wav2vec2")
    grown = [adapter_of(model, tmp_path / folder, seed=seed, classifier=True) for seed, folder in enumerate("ab")]
    assert {"classifier.weight", "projector.bias", "base/classifier.bias"} <= load_file(
        tmp_path / "a" / TENSOR_FILE
    ).keys()
    attach_neurons(model, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, grown[0].eval()(**batch).logits)
    held = snapshot(model)
    with pytest.raises(ValueError, match=r"'classifier.weight'.* is not the base's: another adapter .* modules=False"):
        attach_neurons(model, tmp_path / "b")
    assert same_state(model, held)
    attach_neurons(model, tmp_path / "b", modules=False)
    assert torch.equal(model.classifier.weight, grown[0].classifier.weight)
    detach_neurons(model, tmp_path / "b")
    assert same_state(model, held)
    detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


def test_an_adapter_with_a_classifier_goes_on_last(tmp_path):
    model = tiny_model("wav2vec2").eval()
    adapter_of(model, tmp_path / "plain", seed=0)
    adapter_of(model, tmp_path / "head", seed=1, classifier=True)
    other = copy.deepcopy(model)
    for folder in ("plain", "head"):
        attach_neurons(model, tmp_path / folder)
    attach_neurons(other, tmp_path / "head")
    held = snapshot(other)
    with pytest.raises(ValueError, match=r"differs from that in .* brought modules of its own, .* detach that"):
        attach_neurons(other, tmp_path / "plain")
    assert same_state(other, held)


def test_a_new_head_is_exchanged_with_a_word(tmp_path, caplog):
    model = tiny_model("wav2vec2").eval()
    grown = adapter_of(model, tmp_path / "a", classifier=True)
    nn.init.normal_(model.classifier.weight)  # as from_pretrained does with a checkpoint that has none
    with caplog.at_level(logging.WARNING):
        attach_neurons(model, tmp_path / "a")
    assert "'classifier.weight' is another than the base of" in caplog.text
    with torch.no_grad():
        assert torch.equal(model(**tiny_batch("wav2vec2")).logits, grown.eval()(**tiny_batch("wav2vec2")).logits)


def test_running_statistics_are_saved_where_they_are_named(tmp_path):
    model = tiny_model("conformer")
    stock, before = copy.deepcopy(model), snapshot(model)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)]
    other = copy.deepcopy(model)
    base = only_new_neurons(other)
    trainer_of(tmp_path, "conformer", model=other, config=ADAPTER)[0].train()
    with pytest.raises(ValueError, match=r"running_mean.*is not what the base had"):
        save_neurons(other, tmp_path / "a", base)
    base = only_new_neurons(model, modules=norms)
    trainer_of(tmp_path, "conformer", model=model, config=ADAPTER)[0].train()
    save_neurons(model, tmp_path / "a", base)
    attach_neurons(stock, tmp_path / "a")
    with torch.no_grad():
        batch = tiny_batch("conformer")
        assert torch.equal(stock.eval()(**batch).logits, model.eval()(**batch).logits)
    detach_neurons(stock, tmp_path / "a")
    assert same_state(stock, before)


def test_half_precision(tmp_path):
    model = tiny_model("wav2vec2").eval()
    cast, before = copy.deepcopy(model).bfloat16(), snapshot(copy.deepcopy(model).bfloat16())
    adapter_of(model, tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"in torch.float32, the model in torch.bfloat16: load the base in torch.float32"
    ):
        attach_neurons(cast, tmp_path / "a")
    attach_neurons(model, tmp_path / "a")
    model.bfloat16()
    detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)
    grown = adapter_of(cast, tmp_path / "b")
    assert {value.dtype for value in load_file(tmp_path / "b" / TENSOR_FILE).values()} == {torch.bfloat16}
    attach_neurons(cast, tmp_path / "b")
    assert same_state(cast, snapshot(grown))
    detach_neurons(cast, tmp_path / "b")
    assert same_state(cast, before)


OPTIMIZERS = {
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
    "adafactor": lambda p, lr: torch.optim.Adafactor(p, lr=lr),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=100 * lr, momentum=0.9),
    "neuroplastic": NeuroPlastic,
    "trace": lambda p, lr: NeuroPlastic(p, lr=lr, activity="trace"),
    "gradient": lambda p, lr: NeuroPlastic(p, lr=0.1, base="gradient"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("whole", [False, True])
def test_nothing_old_moves_under_any_optimizer(optimizer, whole, tmp_path):
    model = tiny_model("wav2vec2")
    for parameter in model.parameters():
        parameter.data.view(-1)[0] = -0.0  # a bit that a step of +0 would turn
    base = only_new_neurons(model, classifier=whole)
    trainer_of(tmp_path, model=model, config=ADAPTER, optimizer=OPTIMIZERS[optimizer])[0].train()
    assert save_neurons(model, tmp_path / "a", base) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_that_decays_frozen_neurons_is_refused_before_it_does(dtype, tmp_path):
    model = tiny_model("wav2vec2").to(dtype)
    base, before = only_new_neurons(model), None
    trainer, callback = trainer_of(tmp_path, model=model, config=ADAPTER, optimizer=torch.optim.AdamW)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"AdamW has weight_decay=0.01 for weights of .*feed_forward.*TrainingArguments"
    ):
        trainer.train()
    assert same_state(model, before)
    assert not base.differences(model)
    callback.dropin.unpatch()

    model = tiny_mlp()
    dropin = DropIn(model, ADAPTER, total_steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"SGD has weight_decay=0.1 for"):
        dropin.step(optimizer)


def test_decay_of_what_learns_whole_is_allowed(tmp_path):
    model = tiny_model("wav2vec2")
    base = only_new_neurons(model, classifier=True)
    head = [parameter for name, parameter in model.named_parameters() if name in base.tensors]
    rest = [parameter for name, parameter in model.named_parameters() if name not in base.tensors]

    def optimizer(_, lr):
        return torch.optim.AdamW([{"params": head, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=lr)

    trainer_of(tmp_path, model=model, config=ADAPTER, optimizer=optimizer)[0].train()
    save_neurons(model, tmp_path / "a", base)


def test_only_new_neurons_and_what_is_named_learn():
    model = tiny_model("wav2vec2")
    only_new_neurons(model, layers=[1], modules=["projector"])
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layer = "wav2vec2.encoder.layers.1.feed_forward"
    inside = {f"{layer}.intermediate_dense.weight", f"{layer}.intermediate_dense.bias", f"{layer}.output_dense.weight"}
    assert learns == {*inside, "projector.weight", "projector.bias"}


def test_an_adapter_can_be_saved_while_training_and_overwritten_at_the_end(tmp_path):
    model, counts = tiny_model("ast"), []
    stock = copy.deepcopy(model)
    base = only_new_neurons(model)

    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % 2 == 0:
                counts.append(save_neurons(model, tmp_path / "a", base))

    trainer, _ = trainer_of(tmp_path / "out", "ast", model=model, config=ADAPTER)
    trainer.add_callback(Save())
    trainer.train()
    assert counts == [10, 10, 10]
    attach_neurons(stock, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(stock.eval()(**tiny_batch("ast")).logits, model.eval()(**tiny_batch("ast")).logits)


def test_a_stock_model_can_be_given_as_the_base(tmp_path):
    model = tiny_model("wav2vec2")
    grown = copy.deepcopy(model)
    teach(grown, None)
    save_neurons(grown, tmp_path / "a", model)
    attach_neurons(model, tmp_path / "a")
    assert same_state(model, snapshot(grown))


def _trained(model):
    with torch.no_grad():
        model.wav2vec2.encoder.layers[0].attention.q_proj.weight[0, 0] += 1


def _reborn(model):
    with torch.no_grad():
        model.wav2vec2.encoder.layers[0].feed_forward.intermediate_dense.weight[3] += 1


def _endless(model):
    with torch.no_grad():
        model.wav2vec2.encoder.layers[0].feed_forward.output_dense.weight[0, -1] = torch.inf


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_trained, "q_proj.weight' of .* is not what the base had"),
        (_reborn, "intermediate_dense.weight' of .* is not what the base had"),
        (_endless, "output_dense.weight' holds values that are not finite"),
    ],
)
def test_what_could_not_be_brought_back_is_not_saved(harm, words, tmp_path):
    model = tiny_model("wav2vec2")
    base = AdapterBase.of(model)
    teach(model, base)
    harm(model)
    with pytest.raises(ValueError, match=words):
        save_neurons(model, tmp_path / "a", base)
    assert not (tmp_path / "a").exists()


def test_no_grown_neuron_is_an_error_that_says_so(tmp_path):
    model = tiny_model("wav2vec2")
    base = AdapterBase.of(model)
    reserve(model, 4)
    with pytest.raises(ValueError, match="no neuron of Wav2Vec2ForSequenceClassification is active beyond its base"):
        save_neurons(model, tmp_path / "a", base)


def test_neurons_that_learnt_nothing_are_saved_with_a_word(tmp_path, caplog):
    model = tiny_model("wav2vec2")
    base = only_new_neurons(model)
    trainer_of(tmp_path, model=model, config=DropInConfig.adapter(5))[0].train()  # 6 steps, growth at the last one
    with caplog.at_level(logging.WARNING):
        save_neurons(model, tmp_path / "a", base)
    assert "outgoing weights of all new neurons are still 0" in caplog.text
    caplog.clear()
    adapter_of(tiny_model("wav2vec2"), tmp_path / "b")
    assert not caplog.text


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    model = tiny_model("wav2vec2")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FileExistsError, match="holds something else than a neuron adapter"):
            adapter_of(model, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _other_weights():
    model = tiny_model("wav2vec2")
    with torch.no_grad():
        model.wav2vec2.encoder.layers[1].feed_forward.output_dense.bias[0] += 1e-3
    return model


def _watched():
    model = tiny_model("wav2vec2")
    DropIn(model)
    return model


BASES = {
    "weights": (_other_weights, ValueError, "adapter for .*differs from that in 1 of .*output_dense.bias"),
    "narrower": (
        lambda: tiny_model("wav2vec2", intermediate_size=20),
        ValueError,
        "24 neurons in .* has 20: another base",
    ),
    "wider": (lambda: tiny_model("wav2vec2", intermediate_size=30), ValueError, "adapter for .*differs from that in"),
    "hidden": (lambda: tiny_model("wav2vec2", hidden_size=32), ValueError, "of shape .* another base"),
    "layers": (
        lambda: tiny_model("wav2vec2", num_hidden_layers=3),
        ValueError,
        "2 layers that can hold neurons, .* has 3",
    ),
    "family": (lambda: tiny_model("ast"), ValueError, "in one of them only"),
    "activation": (
        lambda: tiny_model("wav2vec2", hidden_act="relu"),
        ValueError,
        "the activation GELUActivation .*ReLU",
    ),
    "watched": (_watched, RuntimeError, "unpatch"),
    "double": (lambda: tiny_model("wav2vec2").double(), ValueError, "float32, the model in torch.float64"),
}


@pytest.mark.parametrize("case", BASES)
def test_another_base_is_refused_by_name_before_anything_changes(case, tmp_path):
    make, error, words = BASES[case]
    adapter_of(tiny_model("wav2vec2"), tmp_path / "a")
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        attach_neurons(model, tmp_path / "a")
    assert same_state(model, before)
    with pytest.raises((ValueError, RuntimeError)):
        detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


def test_a_base_without_biases_is_another(tmp_path):
    model, other = tiny_model("llama", mlp_bias=True), tiny_model("llama")
    adapter_of(other, tmp_path / "a")
    for work in (attach_neurons, detach_neurons):
        with pytest.raises(ValueError, match=r"up_proj.bias' of shape None, and the model needs \[3\]: another base"):
            work(model, tmp_path / "a")


def test_a_head_of_another_size_may_stay(tmp_path):
    model = tiny_model("ast").eval()
    adapter_of(model, tmp_path / "a", classifier=True)
    model.classifier.dense = nn.Linear(16, 5)
    with pytest.raises(ValueError, match=r"classifier.dense.*\[2.*\[5.*another base"):
        attach_neurons(model, tmp_path / "a")
    before = snapshot(model)
    attach_neurons(model, tmp_path / "a", modules=False)
    detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


def test_neurons_that_learnt_further_or_are_not_there_are_not_taken_out(tmp_path):
    model = tiny_model("wav2vec2")
    adapter_of(model, tmp_path / "a")
    with pytest.raises(ValueError, match=r"6 of the 6 neurons of .* the adapter is not attached"):
        detach_neurons(model, tmp_path / "a")
    attach_neurons(model, tmp_path / "a")
    with pytest.raises(ValueError, match="in the model already"):
        attach_neurons(model, tmp_path / "a")
    with torch.no_grad():
        model.wav2vec2.encoder.layers[1].feed_forward.output_dense.weight[0, 25] += 1e-6
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1 of the 6 neurons of .* was trained since"):
        detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


@pytest.mark.parametrize("name", [TENSOR_FILE, INDEX_FILE])
@pytest.mark.parametrize("harm", ["absent", "cut", "of another save"])
def test_damaged_files_are_refused(name, harm, tmp_path):
    model = tiny_model("wav2vec2")
    for seed, folder in enumerate("ab"):
        adapter_of(model, tmp_path / folder, seed=seed)
    path = tmp_path / "a" / name
    if harm == "absent":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.write_bytes((tmp_path / "b" / name).read_bytes())
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"is no neuron adapter|damaged"):
        attach_neurons(model, tmp_path / "a")
    assert same_state(model, before)


@pytest.mark.parametrize("value", [{}, [], {"format": 9}, {"format": 1, "sha256": None}])
def test_an_index_of_something_else_is_refused(value, tmp_path):
    adapter_of(tiny_model("wav2vec2"), tmp_path / "a")
    (tmp_path / "a" / INDEX_FILE).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"format|damaged"):
        attach_neurons(tiny_model("wav2vec2"), tmp_path / "a")


@pytest.mark.parametrize(
    ("field", "value"),
    [("widths", "24"), ("widths", 1.5), ("widths", -1), ("activations", None), ("reserve", [99]), ("reserve", "0")],
)
def test_an_index_of_an_impossible_base_is_refused(field, value, tmp_path):
    adapter_of(tiny_model("wav2vec2"), tmp_path / "a")
    path = tmp_path / "a" / INDEX_FILE
    index = json.loads(path.read_text())
    index["base"][field][next(iter(index["neurons"]))] = value
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="damaged"):
        attach_neurons(tiny_model("wav2vec2"), tmp_path / "a")


MISTAKES = [
    (lambda: KINDS["chain"].build(), {}, "no feed-forward layer that could hold neurons of an adapter"),
    (lambda: KINDS["resnet_basic"].build(), {}, "no feed-forward layer that could hold neurons of an adapter"),
    (lambda: tiny_mlp(), {"classifier": True}, "Sequential has no such part; name it in modules="),
    (lambda: tiny_model("whisper"), {"classifier": True}, "'proj_out', which shares a weight with others"),
    (lambda: tiny_model("ast"), {"modules": ["head"]}, "no such module or parameter"),
    (lambda: tiny_model("ast"), {"modules": ["audio_spectrogram_transformer.layers"]}, "holds the neurons of"),
    (lambda: tiny_model("ast"), {"layers": ["nothing"]}, "matches none of the model's sites"),
]


@pytest.mark.parametrize(("make", "options", "words"), MISTAKES)
def test_a_base_that_cannot_be_one_is_refused_and_left_as_it_is(make, options, words):
    model = make()
    learns = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match=words):
        only_new_neurons(model, **options)
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    with pytest.raises(RuntimeError, match="before DropIn"):
        only_new_neurons(_watched())


def test_layers_may_have_grown_by_different_numbers_and_neurons_may_be_alike(tmp_path):
    model = tiny_model("wav2vec2").eval()
    before, grown = snapshot(model), copy.deepcopy(model)
    teach(grown, None, 4, layers=[find_sites(model)[0].name])
    with torch.no_grad():
        for part in find_sites(grown)[1].slices:  # two alike, in slots that were in reserve
            part.tensor.narrow(part.dim, 25, 2).fill_(0.1)
    assert save_neurons(grown, tmp_path / "a", model) == 6
    attach_neurons(model, tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(model(**tiny_batch("wav2vec2")).logits, grown(**tiny_batch("wav2vec2")).logits)
    assert model.config.intermediate_size == 28
    detach_neurons(model, tmp_path / "a")
    assert same_state(model, before)
