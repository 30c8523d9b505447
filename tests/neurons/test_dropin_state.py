"""What a DropIn knows is saved and taken over whole."""

import copy

import pytest
import torch
from tiny import tiny_batch, tiny_mlp, tiny_model, train

from hf_neuroplastic import DropIn, DropInConfig


@pytest.mark.parametrize("observe_every", [1, 3])
def test_state_dict_continues_a_run_bit_for_bit(observe_every):
    def make():
        model = tiny_model("ast")
        config = DropInConfig(
            interval=2,
            maturity=1,
            max_fraction=0.1,
            threshold=float("inf"),
            stop=None,
            synaptic_lr=0.01,
            observe_every=observe_every,
        )
        return model, DropIn(model, config), torch.optim.AdamW(model.parameters(), lr=1e-3)

    batches = [tiny_batch("ast", seed=seed) for seed in range(8)]
    model, dropin, optimizer = make()
    train(model, dropin, optimizer, batches)

    first = make()
    train(*first, batches[:5])
    second = make()
    for source, target in zip(first, second, strict=True):
        target.load_state_dict(copy.deepcopy(source.state_dict()))
    train(*second, batches[5:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second[0].parameters(), strict=True))
    for a, b in zip(dropin.statistics, second[1].statistics, strict=True):
        assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert [int(c) for c in dropin.replaced] == [int(c) for c in second[1].replaced]


def test_a_step_half_taken_is_forgotten_on_loading():
    model = tiny_model("ast")
    dropin = DropIn(model, DropInConfig(stop=None))
    state = dropin.state_dict()
    model(**tiny_batch("ast")).loss.backward()
    assert all(known.sums.any() for known in dropin.statistics)
    dropin.load_state_dict(state)
    assert not any(known.sums.any() for known in dropin.statistics)


def test_loading_other_sites_is_refused_and_changes_nothing():
    state = DropIn(tiny_model("ast")).state_dict()
    dropin = DropIn(tiny_model("wav2vec2"))
    with pytest.raises(ValueError, match=r"state is of the sites.*mlp.*watches.*feed_forward"):
        dropin.load_state_dict(state)
    narrow = DropIn(tiny_model("ast", intermediate_size=20)).state_dict()
    same = DropIn(tiny_model("ast"))
    same.statistics[0].age += 5
    with pytest.raises(ValueError, match=r"layers\.0\.mlp.*\(6?5?, ?24\).*\(5, 20\)|layers\.0\.mlp.*24.*20"):
        same.load_state_dict(narrow)
    assert same.statistics[0].age.unique().tolist() == [5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step_count": -3}, "step_count"),
        ({"events": None}, "events"),
        ({"sites": {}}, "sites"),
        ({"sites": None}, "sites"),
        ({"step_count": True}, "step_count"),
        ({"start_widths": [10.0]}, "start_widths.*must be 1 ints"),
        ({"sites": {"0": {}}}, "site '0': the statistics of a site must hold"),
    ],
)
def test_a_broken_state_is_refused(change, words):
    dropin = DropIn(tiny_mlp(), DropInConfig(stop=None))
    with pytest.raises(ValueError, match=words):
        dropin.load_state_dict({**dropin.state_dict(), **change})


@pytest.mark.parametrize(
    "take", [lambda state: DropIn(tiny_mlp(), state=state), lambda s: DropIn(tiny_mlp()).load_state_dict(s)]
)
def test_a_state_is_a_dict(take):
    with pytest.raises(TypeError, match=r"state must be what DropIn\.state_dict\(\) gave, got str"):
        take("checkpoint-3")
