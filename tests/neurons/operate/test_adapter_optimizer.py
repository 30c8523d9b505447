"""An optimizer over new neurons alone: it steps these as an optimizer of the whole would, and has no way to the rest."""

import copy

import pytest
import torch
from kinds import snapshot
from runs import Samples
from tiny import tiny_batch, tiny_model
from transformers import Trainer, TrainingArguments

from hf_neuroplastic import (
    AdapterBase,
    DropIn,
    DropInConfig,
    NeuroPlastic,
    attach_neurons,
    grow,
    new_neuron_optimizer,
    only_new_neurons,
    save_neurons,
)
from hf_neuroplastic.neurons.sites import find_sites, inert_slots

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 1e-1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2, "weight_decay": 0.1}),
    "asgd": (torch.optim.ASGD, {"lr": 1e-1, "lambd": 1e-2}),
    "neuroplastic": (NeuroPlastic, {"lr": 1e-2, "weight_decay": 0.1}),
    "8 bits": (NeuroPlastic, {"lr": 1e-2, "state_bits": 8}),
}


def grown(family="wav2vec2", count=3, **options):
    model = tiny_model(family)
    base = only_new_neurons(model, **options)
    grow(model, count)
    return model, base


def steps(model, optimizer, count=4, family="wav2vec2", clear=True):
    for seed in range(count):
        model(**tiny_batch(family, seed=seed)).loss.backward()
        optimizer.step()
        if clear:
            optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("classifier", [False, True])
def test_new_neurons_learn_and_nothing_old_moves_decay_or_not(name, classifier, tmp_path):
    make, options = OPTIMIZERS[name]
    model, base = grown(classifier=classifier)
    before = snapshot(model)
    optimizer = new_neuron_optimizer(model, base, make, **options)
    steps(model, optimizer)
    assert not base.differences(model)
    for site in find_sites(model):
        for part in site.slices:
            new = part.tensor.detach().narrow(part.dim, 24, 3)
            held = next(
                value for key, value in before.items() if value.shape == part.tensor.shape and key.startswith(site.name)
            )
            assert not torch.equal(new, held.narrow(part.dim, 24, 3))
    assert (not torch.equal(model.classifier.weight, before["classifier.weight"])) == classifier
    stock = tiny_model("wav2vec2")
    save_neurons(model, tmp_path / "a", base)
    attach_neurons(stock, tmp_path / "a")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True))


def test_the_steps_are_those_of_an_optimizer_of_whole_parameters():
    """AdamW works element by element: over parts it does what it does over the whole with masked gradients."""
    model, base = grown()
    whole = copy.deepcopy(model)
    steps(model, new_neuron_optimizer(model, base, torch.optim.AdamW, lr=1e-2, weight_decay=0.0))
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for site in find_sites(whole):
        for part in site.slices:
            part.tensor.register_hook(lambda g, dim=part.dim: g.index_fill(dim, torch.arange(24), 0.0))
    steps(whole, optimizer)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_state_is_that_of_the_new_neurons_and_gradients_end_with_the_step():
    model, base = grown(count=2)
    optimizer = new_neuron_optimizer(model, base, torch.optim.AdamW)
    steps(model, optimizer, 2, clear=False)  # none is left to be cleared
    new = 2 * 2 * (16 + 1 + 16)
    assert sum(v.numel() for state in optimizer.state.values() for v in state.values()) == 2 * new + 2 * 3
    assert all(parameter.grad is None for parameter in model.parameters())
    again, base = grown(count=2)
    steps(again, new_neuron_optimizer(again, base, torch.optim.AdamW), 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_clears_what_a_skipped_step_left(to_none):
    model, base = grown(count=2)
    optimizer = new_neuron_optimizer(model, base, torch.optim.AdamW)
    model(**tiny_batch("wav2vec2")).loss.backward()
    optimizer.zero_grad(to_none)
    left = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is None if to_none else not grad.any() for grad in left)


def _trainer(folder, steps=6):
    model, base = grown("ast")
    optimizer = new_neuron_optimizer(model, base, torch.optim.AdamW, lr=1e-2)
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], max_steps=6, per_device_train_batch_size=4, save_steps=3, seed=1
    )
    return model, base, Trainer(model, arguments, train_dataset=Samples("ast"), optimizers=(optimizer, None))


def test_a_resumed_run_is_the_uninterrupted_one_under_trainer(tmp_path):
    from hf_neuroplastic import accept_saved_keys

    whole, base, trainer = _trainer(tmp_path)
    trainer.train()
    resumed, _, trainer = _trainer(tmp_path)
    accept_saved_keys(resumed)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not base.differences(resumed)


def test_a_gradient_that_is_accumulated_is_that_of_the_whole_batch():
    found = []
    for parts in (1, 2):
        model, base = grown("ast")
        optimizer = new_neuron_optimizer(model, base, torch.optim.SGD, lr=1.0)
        batch = tiny_batch("ast", 4)
        for index in range(parts):
            share = {name: value.chunk(parts)[index] for name, value in batch.items()}
            (model(**share).loss / parts).backward()
        optimizer.step()
        found.append(snapshot(model))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-6)


def test_mistakes_are_told():
    model = tiny_model("ast")
    base = only_new_neurons(model)
    with pytest.raises(ValueError, match=r"no neuron beyond its base that learns.*grow\(model, n\)"):
        new_neuron_optimizer(model, base, torch.optim.AdamW)
    wide = AdapterBase.of(tiny_model("ast", intermediate_size=40))
    with pytest.raises(ValueError, match=r"base knows no site .* of this width"):
        new_neuron_optimizer(model, wide, torch.optim.AdamW)
    grow(model, 2)
    optimizer = new_neuron_optimizer(model, base, torch.optim.LBFGS)
    with pytest.raises(ValueError, match="closure cannot be used"):
        optimizer.step(lambda: torch.zeros(()))
    with pytest.raises(ValueError, match="optimizer holds no parameter of the watched layers"):
        DropIn(model, DropInConfig(stop=None)).step(new_neuron_optimizer(model, base, torch.optim.AdamW))


def test_slots_in_reserve_stay_so():
    model = tiny_model("wav2vec2")
    base = only_new_neurons(model)
    grow(model, 3, layers=[0])
    steps(model, new_neuron_optimizer(model, base, torch.optim.AdamW, lr=1e-2, weight_decay=0.1))
    grew, waits = find_sites(model)
    assert not inert_slots(grew).any()
    assert inert_slots(waits)[24:].all()
