"""Every kind of site keeps the promises that plain feed-forward layers keep."""

import pytest
import torch
from kinds import KINDS, RESIZABLE, SILENCEABLE, decisions, hold_constant, snapshot, unchanged

from hf_neuroplastic import DropIn, NeuroPlastic, compact, reserve
from hf_neuroplastic.neurons.decide.decisions import Action, Decision
from hf_neuroplastic.neurons.sites import find_sites, inert_slots

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "neuroplastic": lambda p: NeuroPlastic(p, lr=1e-3),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_patching_changes_nothing_and_unpatching_leaves_nothing(kind):
    plain, patched = kind.build(), kind.build()
    parameters, keys = dict(patched.named_parameters()), list(patched.state_dict())
    dropin = DropIn(patched, kind.config())
    for model in (plain, patched):
        kind.outputs(model).square().mean().backward()
    assert dict(patched.named_parameters()).keys() == parameters.keys()
    assert all(dict(patched.named_parameters())[name] is p for name, p in parameters.items())
    for mine, stock in zip(patched.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (stock.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, stock.grad, rtol=1e-5, atol=1e-6)
    for mine, stock in zip(patched.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-5, atol=1e-6)
    patched.load_state_dict(plain.state_dict())
    dropin.step()
    assert all((known.activity > 0).any() for known in dropin.statistics)
    dropin.unpatch()
    assert list(patched.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(kind.in_both_modes(patched), kind.in_both_modes(plain), strict=True))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_empty_decision_changes_nothing(kind):
    model, dropin = kind.observed()
    before = snapshot(model)
    for action in Action if kind.silences else [Action.REPLACE]:
        dropin.apply(decisions(action, dropin))
        assert unchanged(model, before)


CONSTANTS = [(name, 0.0) for name in KINDS] + [
    (name, 0.7) for name in ("llama_bias", "convolutions", "normalised", "chain")
]


@pytest.mark.parametrize(("name", "constant"), CONSTANTS)
def test_replacing_a_constant_neuron_does_not_change_the_output(name, constant):
    kind = KINDS[name]
    model = kind.build()
    dropin = DropIn(model, kind.config())
    for site in dropin.sites:
        hold_constant(site, 1, constant)
    kind.train_step(model)
    dropin.step()
    expected, before = kind.in_both_modes(model), snapshot(model)
    dropin.apply(decisions(Action.REPLACE, dropin, 1))
    for mine, stock in zip(kind.in_both_modes(model), expected, strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-5, atol=1e-5)
    for site in dropin.sites:
        assert all(weight.view.select(0, 1).any() for weight, _ in site.incoming)
        for neuron_slice in site.outgoing:
            reborn = neuron_slice.view.select(neuron_slice.dim, 1)
            assert not reborn[[0, *range(2, len(reborn))]].any()  # entry 1 may be a reborn neuron of the next site
        assert not any(
            neuron_slice.view.select(neuron_slice.dim, 1).any()
            for neuron_slice in site.others
            if neuron_slice.fill == "zero"
        )
    assert not unchanged(model, before)


@pytest.mark.parametrize("name", SILENCEABLE)
def test_a_pruned_neuron_is_silent_and_stays_so(name):
    kind = KINDS[name]
    model, dropin = kind.observed()
    dropin.apply(decisions(Action.PRUNE, dropin, 0, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(3):
        kind.train_step(model, optimizer, seed)
        assert all(inert_slots(site).tolist() == [True, True] + [False] * (site.width - 2) for site in dropin.sites)
    for known in dropin.statistics:
        assert known.active.tolist() == [False, False] + [True] * (known.active.numel() - 2)


@pytest.mark.parametrize("name", RESIZABLE)
def test_growing_then_pruning_what_was_grown_is_the_identity(name):
    kind = KINDS[name]
    model = kind.build()
    plain = kind.in_both_modes(model)
    reserve(model, 3)
    expected, before = kind.in_both_modes(model), snapshot(model)
    for wide, stock in zip(expected, plain, strict=True):
        torch.testing.assert_close(wide, stock, rtol=1e-5, atol=1e-6)
    dropin = DropIn(model, kind.config())
    slots = [~known.active for known in dropin.statistics]
    assert all(int(mask.sum()) == 3 for mask in slots)
    dropin.apply([Decision(Action.GROW, mask) for mask in slots])
    assert not any(inert_slots(site).any() for site in dropin.sites)
    assert all(torch.equal(a, b) for a, b in zip(kind.in_both_modes(model), expected, strict=True))
    dropin.apply([Decision(Action.PRUNE, mask) for mask in slots])
    assert unchanged(model, before)
    dropin.unpatch()
    assert compact(model) == 3 * len(dropin.sites)
    assert [p.shape for p in model.parameters()] == [p.shape for p in kind.build().parameters()]
    assert str(model) == str(kind.build())
    for narrow, stock in zip(kind.in_both_modes(model), plain, strict=True):
        torch.testing.assert_close(narrow, stock, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", RESIZABLE)
def test_reserve_stays_inert_through_training_and_compact_undoes_it(name, make):
    kind = KINDS[name]
    model = kind.build()
    optimizer = make(model.parameters())
    kind.train_step(model, optimizer)
    reserve(model, 2, optimizer=optimizer)
    for seed in range(1, 4):
        kind.train_step(model, optimizer, seed)
    assert all(int(inert_slots(site).sum()) == 2 for site in find_sites(model))
    expected = kind.in_both_modes(model)
    assert compact(model, optimizer=optimizer) == 2 * len(find_sites(model))
    for narrow, wide in zip(kind.in_both_modes(model), expected, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-6)
    kind.train_step(model, optimizer, 4)  # shapes of parameters, gradients and state agree
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_only_what_belongs_to_the_chosen_neurons_changes(kind, make):
    model = kind.build()
    optimizer = make(model.parameters())
    dropin = DropIn(model, kind.config())
    for seed in range(2):
        kind.train_step(model, optimizer, seed)
        dropin.step(optimizer)
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    tensors |= {
        f"{name} {key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if value.numel() > 1
    }
    before = {name: value.clone() for name, value in tensors.items()}
    allowed = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in tensors.items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    names |= {buffer: name for name, buffer in model.named_buffers()}
    for site in dropin.sites:
        for neuron_slice in site.slices:
            for name, mask in allowed.items():
                whole = (
                    mask.ndim == neuron_slice.tensor.ndim
                    and mask.shape[neuron_slice.dim] == neuron_slice.tensor.shape[neuron_slice.dim]
                )
                if whole and name.split(" ")[0] == names[neuron_slice.tensor]:
                    neuron_slice.block_of(mask, neuron_slice.dim).select(neuron_slice.dim, 1).fill_(True)
        for into in (site.down.bias, *(fold.into for fold in site.folds)):
            if into is not None:
                allowed[names[into]].fill_(True)
    dropin.apply(decisions(Action.REPLACE, dropin, 1), optimizer)
    for name, value in tensors.items():
        kept = ~allowed[name]
        assert torch.equal(value[kept], before[name][kept]), name
    assert any(not torch.equal(value, before[name]) for name, value in tensors.items())


@pytest.mark.parametrize("name", ["llama_bias", "normalised", "gru", "chain"])
def test_the_fused_form_writes_what_the_reference_writes(name):
    kind, results = KINDS[name], []
    for backend in ("reference", "fused"):
        model = kind.build()
        dropin = DropIn(model, kind.config())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        kind.train_step(model, optimizer)
        dropin.step(optimizer)
        dropin.config = kind.config(backend=backend)
        dropin.apply(decisions(Action.REPLACE, dropin, 0, 1), optimizer)
        results.append([*model.state_dict().values(), *(state["exp_avg_sq"] for state in optimizer.state.values())])
    for reference, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gemma", "qwen3", "llama_bias", "chain"])
def test_growing_by_split_leaves_the_output_unchanged(name):
    kind = KINDS[name]
    model = kind.build()
    reserve(model, 2)
    dropin = DropIn(model, kind.config(init="split"))
    kind.train_step(model)
    dropin.step()
    expected = kind.in_both_modes(model)
    dropin.apply([Decision(Action.GROW, ~known.active) for known in dropin.statistics])
    assert not any(inert_slots(site).any() for site in dropin.sites)
    for mine, stock in zip(kind.in_both_modes(model), expected, strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_utility_counts_all_outgoing_weights(name):
    kind = KINDS[name]
    _, dropin = kind.observed(criterion="utility", relative=False)
    for site, known, score in zip(dropin.sites, dropin.statistics, dropin.scores(), strict=True):
        weights = [
            neuron_slice.view.transpose(0, neuron_slice.dim).flatten(1).abs().sum(1) for neuron_slice in site.outgoing
        ]
        torch.testing.assert_close(score, known.activity * sum(weights))
        assert (score > 0).any()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_reborn_neuron_learns(kind):
    model, dropin = kind.observed()
    dropin.apply(decisions(Action.REPLACE, dropin, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    held = [part for site in dropin.sites for part in site.slices if isinstance(part.tensor, torch.nn.Parameter)]
    before = [neuron_slice.view.select(neuron_slice.dim, 1).clone() for neuron_slice in held]
    for seed in range(4):  # what leads out moves first, then what leads in, then a GRU's reset gate
        kind.train_step(model, optimizer, seed)
    for neuron_slice, then in zip(held, before, strict=True):
        assert not torch.equal(neuron_slice.view.select(neuron_slice.dim, 1), then)


@pytest.mark.parametrize("name", SILENCEABLE)
def test_a_slot_is_in_reserve_only_if_nothing_of_a_neuron_is_left(name):
    model = KINDS[name].build()
    with torch.no_grad():
        for site in find_sites(model):
            hold_constant(site, 1, 0.0)
            assert not inert_slots(site).any()
            for neuron_slice in site.outgoing:
                neuron_slice.view.select(neuron_slice.dim, 1).zero_()
            assert inert_slots(site).tolist() == [False, True] + [False] * (site.width - 2)
            site.incoming[-1].weight.view[1] = 1e-3
            assert not inert_slots(site).any()
            site.incoming[-1].weight.view[1] = 0.0
