"""Watching changes nothing, and sees exactly the tokens that count."""

import copy

import numpy as np
import pytest
import torch
from tiny import FAMILIES, MORE_FAMILIES, SPEECH_MODELS, tiny_batch, tiny_mlp, tiny_model
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig
from hf_neuroplastic.neurons.observe.padding import FrameMask, FrameMasks
from neuroplastic_kernels.ffn_activation.neuron_sums import (
    ABS_OUTPUT,
    ABS_OUTPUT_GRADIENT,
    OUTPUT,
    TOKENS,
)


def _sums(dropin):
    return [statistics.sums.clone() for statistics in dropin.statistics]


def _observed(family, batches, *, prepare=lambda model: model, **changes):
    """The sums after the gradients of `batches` (each loss weighted by its share of the samples) were accumulated."""
    model = prepare(tiny_model(family, **changes))
    dropin = DropIn(model)
    total = sum(len(batch["labels"]) for batch in batches)
    for batch in batches:
        (model(**batch).loss * (len(batch["labels"]) / total)).backward()
    return _sums(dropin)


def _gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_a_patched_model_is_the_stock_model_bit_for_bit(family):
    batch = tiny_batch(family)
    stock, patched = tiny_model(family), tiny_model(family)
    parameters = dict(patched.named_parameters())
    dropin = DropIn(patched)

    expected, found = stock(**batch), patched(**batch)
    assert torch.equal(expected.logits, found.logits)
    expected.loss.backward()
    found.loss.backward()
    wanted = _gradients(stock)
    for name, gradient in _gradients(patched).items():
        assert torch.equal(gradient, wanted[name]), name
    assert list(stock.state_dict()) == list(patched.state_dict())

    dropin.unpatch()
    assert not dropin.patched
    assert all(dict(patched.named_parameters())[name] is p for name, p in parameters.items())
    assert all(not site.activation._forward_hooks for site in dropin.sites)
    assert torch.equal(stock(**batch).logits, patched(**batch).logits)


def test_moments_are_the_sums_over_tokens_of_outputs_and_their_gradients():
    model = tiny_mlp()
    dropin = DropIn(model)
    x = torch.randn(7, 6)
    z = model[1](model[0](x)).detach().requires_grad_()
    model[2](z).square().sum().backward()
    model.zero_grad()
    model(x).square().sum().backward()
    found = dropin.statistics[0].sums
    expected = {
        ABS_OUTPUT: z.abs(), ABS_OUTPUT_GRADIENT: z.grad.abs(),
        OUTPUT: z, TOKENS: torch.ones_like(z),
    }  # fmt: skip
    for row, value in expected.items():
        torch.testing.assert_close(found[row], value.detach().sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_micro_batches_add_up_to_one_batch(family):
    batch = tiny_batch(family, 4)
    halves = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    for whole, parts in zip(_observed(family, [batch]), _observed(family, halves), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", SPEECH_MODELS)
def test_padding_changes_nothing(family):
    batch = tiny_batch(family, 4, padded=True)
    short = batch["input_values"].shape[1] // 2
    lengths = [{**batch, "rows": slice(0, None, 2), "cut": None}, {**batch, "rows": slice(1, None, 2), "cut": short}]
    parts = []
    for part in lengths:
        rows, cut = part.pop("rows"), part.pop("cut")
        parts.append({
            "input_values": part["input_values"][rows, :cut], "attention_mask": part["attention_mask"][rows, :cut],
            "labels": part["labels"][rows],
        })  # fmt: skip
    padded, unpadded = _observed(family, [batch]), _observed(family, parts)
    for found, expected in zip(padded, unpadded, strict=True):
        assert torch.equal(found[TOKENS], expected[TOKENS])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("family", "squeeze"), [("sew", 2), ("conformer", 1)])
def test_padded_frames_are_not_counted_at_the_encoders_own_rate(family, squeeze):
    batch = tiny_batch(family, 4, padded=True)
    lengths = tiny_model(family)._get_feat_extract_output_lengths(batch["attention_mask"].sum(1)) // squeeze
    tokens = [sums[TOKENS].unique() for sums in _observed(family, [batch])]
    assert [t.tolist() for t in tokens] == [[int(lengths.sum())]] * len(tokens)


def test_padded_frames_are_not_counted():
    batch = tiny_batch("wav2vec2", 4, padded=True)
    tokens = [sums[TOKENS].unique() for sums in _observed("wav2vec2", [batch])]
    frames = int(tiny_model("wav2vec2")._get_feat_extract_output_lengths(torch.tensor(800)))
    short = int(tiny_model("wav2vec2")._get_feat_extract_output_lengths(torch.tensor(400)))
    assert [t.tolist() for t in tokens] == [[2 * frames + 2 * short]] * 2


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_gradient_checkpointing_changes_nothing(family, reentrant):
    def checkpointed(model):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:  # it passes gradients on only to inputs that require them
            model.enable_input_require_grads() if family == "ast" else model.train()
        return model

    batch = [tiny_batch(family, padded=family == "wav2vec2")]
    for plain, found in zip(_observed(family, batch), _observed(family, batch, prepare=checkpointed), strict=True):
        assert torch.equal(plain, found)


def test_a_layer_skipped_by_layerdrop_is_not_observed():
    skipped = _observed("wav2vec2", [tiny_batch("wav2vec2")], layerdrop=1.0)
    assert all(not sums.any() for sums in skipped)
    model = tiny_model("wav2vec2", layerdrop=1.0)
    dropin = DropIn(model, DropInConfig(stop=None))
    model(**tiny_batch("wav2vec2")).loss.backward()
    dropin.step()
    for statistics in dropin.statistics:
        assert not statistics.age.any()
        assert not statistics.weight.any()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])  # WavLM itself hangs with two reentrant passes
def test_two_passes_before_one_backward_have_their_own_masks_under_checkpointing(family, reentrant):
    sums = []
    for checkpointed in (False, True):
        model = tiny_model(family)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        dropin = DropIn(model)
        whole, short = tiny_batch(family, padded=True), tiny_batch(family, padded=True, seed=1)
        short["attention_mask"][:, 200:] = 0
        with torch.no_grad():
            model(**short)  # in training mode, without a backward pass
        (model(**whole).loss + model(**short).loss).backward()
        sums.append([known.clone() for known in _sums(dropin)])
    for plain, found in zip(*sums, strict=True):
        assert plain[TOKENS].max() > 0
        torch.testing.assert_close(found, plain)


def test_a_pass_at_the_address_of_an_earlier_one_has_its_own_mask():
    """As where a layer is compiled in part: its first run is not seen, and its input may lie where another one's lay."""
    taker, layer, memory = FrameMask(tiny_mlp()), tiny_mlp(), np.zeros((2, 5, 6), dtype=np.float32)
    masks = FrameMasks([taker], False, layer)
    old, new = torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    taker(layer, (), {"attention_mask": old})
    masks(layer, (torch.from_numpy(memory),), {})
    copied = copy.deepcopy(masks)
    taker(layer, (), {"attention_mask": new})
    again, found = torch.from_numpy(memory), []

    def run_again(gradient):
        masks(layer, (again,), {})
        found.append(masks.at((2, 5), gradient.device))

    x = torch.ones(1, requires_grad=True)
    x.register_hook(run_again)
    x.sum().backward()
    assert torch.equal(found[0], new)
    assert torch.equal(copied.at((2, 5), new.device), old)


def test_evaluation_keeps_no_masks():
    model = tiny_model("wav2vec2")
    dropin = DropIn(model)
    with torch.no_grad():
        for seed in range(3):
            model.eval()(**tiny_batch("wav2vec2", padded=True, seed=seed))
            assert not any(observer.masks._passes for observer in dropin._observers)
        for seed in range(100):
            model.train()(**tiny_batch("wav2vec2", padded=True, seed=seed))
    assert all(len(observer.masks._passes) <= 64 for observer in dropin._observers)


@pytest.mark.parametrize("mode", ["no_grad", "inference", "unpatched"])
def test_nothing_is_observed_without_a_backward_pass(mode):
    model = tiny_model("wav2vec2")
    dropin = DropIn(model)
    batch = tiny_batch("wav2vec2")
    if mode == "unpatched":
        dropin.unpatch()
    with torch.no_grad() if mode == "no_grad" else torch.inference_mode(mode == "inference"):
        loss = model(**batch).loss
    if mode == "unpatched":
        loss.backward()
    assert all(not sums.any() for sums in _sums(dropin))


def test_a_model_that_is_trained_in_evaluation_mode_is_observed():
    model = tiny_model("wav2vec2").eval()
    dropin = DropIn(model)
    model(**tiny_batch("wav2vec2")).loss.backward()
    assert all(sums.any() for sums in _sums(dropin))


def test_observe_every_thins_the_observations_but_not_the_ages():
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(observe_every=3, stop=None))
    seen = []
    for _ in range(6):
        model(torch.randn(5, 6)).sum().backward()
        seen.append(bool(dropin.statistics[0].sums.any()))
        dropin.step()
    assert seen == [True, False, False, True, False, False]
    assert dropin.statistics[0].age.tolist() == [6] * 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_observed_in_float32(dtype):
    batch = tiny_batch("ast")
    model = tiny_model("ast")
    dropin = DropIn(model)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(**batch).loss
    loss.backward()
    for found, expected in zip(_sums(dropin), _observed("ast", [batch]), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[ABS_OUTPUT], expected[ABS_OUTPUT], rtol=0.05, atol=0.05)


def test_an_unusable_mask_is_said_once_and_counts_every_frame(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_mlp()

        def forward(self, x, attention_mask=None):
            return self.net(x)

    model = Odd()
    dropin = DropIn(model)
    for _ in range(2):
        model(torch.randn(2, 5, 6), torch.ones(2, 50)).sum().backward()  # positional on purpose
    assert dropin.statistics[0].sums[TOKENS].unique().tolist() == [20]
    assert len([record for record in caplog.records if "padded frames are counted" in record.message]) == 1
    model(torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])).sum().backward()
    assert dropin.statistics[0].sums[TOKENS].unique().tolist() == [24]


def test_a_compiled_model_is_observed_too():
    model = tiny_mlp()
    dropin = DropIn(model)
    x = torch.randn(5, 6)
    torch.compile(model, backend="aot_eager")(x).sum().backward()
    compiled = _sums(dropin)[0]
    dropin.statistics[0].discard()
    model(x).sum().backward()
    torch.testing.assert_close(compiled, dropin.statistics[0].sums)


def test_patching_twice_is_refused():
    model = tiny_mlp()
    first = DropIn(model)
    with pytest.raises(RuntimeError, match=r"'0' is patched already.*unpatch"):
        DropIn(model)
    first.unpatch()
    first.unpatch()
    DropIn(model)
