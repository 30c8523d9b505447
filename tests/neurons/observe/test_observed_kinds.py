"""Neurons of every kind of site are seen as they are, wherever their outputs stand and however their tokens are laid out."""

import copy
import pickle

import pytest
import torch
from kinds import KINDS
from tiny import GATED, SPEECH, tiny_batch, tiny_decoder, tiny_mlp, tiny_model
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import SpeechEncoderDecoderModel, Wav2Vec2Config, Wav2Vec2Model

from hf_neuroplastic import DropIn, DropInConfig
from neuroplastic_kernels.ffn_activation.neuron_sums import (
    ABS_OUTPUT,
    ABS_OUTPUT_GRADIENT,
    OUTPUT,
    TOKENS,
)

UNNORMALISED = [name for name in KINDS if name != "normalised" and not name.startswith("resnet")]
GRU = {"recurrent": {"gru": "head"}}


class Tagger(nn.Module):
    """A GRU over [B, T, D], laid out as `layout` says, that is told which steps are padding."""

    def __init__(self, layout="batch_first"):
        super().__init__()
        torch.manual_seed(0)
        self.layout = layout
        self.gru, self.head = nn.GRU(4, 5, batch_first=layout != "time_first"), nn.Linear(5, 2)

    def forward(self, x, attention_mask):
        if self.layout == "packed":
            lengths = attention_mask.sum(1)
            out, _ = self.gru(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            return self.head(pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0])
        if self.layout == "time_first":
            return self.head(self.gru(x.transpose(0, 1))[0]).transpose(0, 1)
        return self.head(self.gru(x)[0])


class Convolutions(nn.Module):
    """Two pointwise convolutions over [B, C, T]: every frame for itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1))

    def forward(self, x, attention_mask=None):
        return self.net(x)


def _sums(dropin):
    return [known.sums for known in dropin.statistics]


def _seen_at(site):
    """What comes out of (or goes into) the watched module from now on: a list that fills."""
    seen = []

    def keep(tensor):
        if tensor.requires_grad:  # DropIn itself asks an activation what it makes of 0
            tensor.retain_grad()
            seen.append(tensor)

    if site.watch == "input":
        site.watched.register_forward_pre_hook(lambda module, args: keep(args[0]))
    else:
        site.watched.register_forward_hook(lambda module, args, out: keep(out if torch.is_tensor(out) else out[0]))
    return seen


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_moments_are_the_sums_over_tokens(kind):
    model = kind.build()
    spy = DropIn(model, kind.config())
    spy.unpatch()
    outputs = [_seen_at(site) for site in spy.sites]
    dropin = DropIn(model, kind.config())
    kind.train_step(model)
    for site, (seen,), sums in zip(dropin.sites, outputs, _sums(dropin), strict=True):
        z, dz = (t.movedim(site.neuron_dim, -1).reshape(-1, site.width) for t in (seen.detach(), seen.grad))
        expected = {
            ABS_OUTPUT: z.abs(),
            ABS_OUTPUT_GRADIENT: dz.abs(),
            OUTPUT: z,
            TOKENS: torch.ones_like(z),
        }
        for row, value in expected.items():
            torch.testing.assert_close(sums[row], value.sum(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", UNNORMALISED)
def test_micro_batches_add_up_to_one_batch(name):
    kind = KINDS[name]

    def sums(parts):
        model = kind.build()
        dropin = DropIn(model, kind.config())
        named = isinstance(kind.inputs, str)
        batch = tiny_batch(kind.inputs) if named else {"input": torch.randn(kind.inputs)}
        for rows in torch.arange(len(next(iter(batch.values())))).chunk(parts):
            part = {name: value[rows] for name, value in batch.items()}
            outputs = model(**part).logits if named else model(*part.values())
            outputs.square().sum().backward()
        return _sums(dropin)

    torch.manual_seed(1)
    whole = sums(1)
    torch.manual_seed(1)
    for halves, expected in zip(sums(2), whole, strict=True):
        torch.testing.assert_close(halves, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", GATED)
def test_padding_of_a_decoder_changes_nothing(family):
    ids = tiny_batch(family)["input_ids"][:2]
    short = ids.shape[1] // 2

    def sums(*batches):
        model = tiny_model(family)
        dropin = DropIn(model)
        for part, ends in batches:
            mask = (torch.arange(part.shape[1]) < torch.tensor(ends).unsqueeze(1)).long()
            model(input_ids=part * mask, attention_mask=mask).logits.square().sum().backward()  # 0 is the padding's id
        return _sums(dropin)

    padded = sums((ids, [ids.shape[1], short]))
    unpadded = sums((ids[:1], [ids.shape[1]]), (ids[1:, :short], [short]))
    for found, expected in zip(padded, unpadded, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", ["batch_first", "time_first", "packed", "unbatched"])
def test_a_head_on_a_grus_last_state_sees_what_one_on_its_last_output_sees(layout):
    torch.manual_seed(1)
    x, lengths = torch.randn(3, 6, 4), torch.tensor([4, 6, 2])
    inputs = {
        "batch_first": x,
        "time_first": x.transpose(0, 1),
        "unbatched": x[0],
        "packed": pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False),
    }[layout]

    def sums(by_state):
        model = Tagger(layout)
        dropin = DropIn(model, DropInConfig(**GRU))
        out, state = model.gru(inputs)
        if layout == "packed":
            last = pad_packed_sequence(out, batch_first=True)[0][torch.arange(3), lengths - 1]
        else:
            last = out[:, -1] if layout == "batch_first" else out[-1]
        assert torch.equal(state[-1], last)
        model.head(state[-1] if by_state else last).square().sum().backward()
        return _sums(dropin)[0]

    assert sums(True)[ABS_OUTPUT_GRADIENT].min() > 0
    torch.testing.assert_close(sums(True), sums(False), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("layout", ["batch_first", "time_first", "packed"])
def test_padded_steps_of_a_gru_are_not_counted_in_any_layout(layout):
    x = torch.randn(3, 6, 4)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])

    def sums(layout):
        model = Tagger(layout)
        dropin = DropIn(model, DropInConfig(**GRU))
        (model(x, attention_mask=mask) * mask.unsqueeze(-1)).square().sum().backward()
        return _sums(dropin)[0]

    found = sums(layout)
    assert found[TOKENS].tolist() == [12.0] * 5
    torch.testing.assert_close(found, sums("batch_first"), rtol=1e-4, atol=1e-6)


def test_padded_frames_of_a_convolution_are_not_counted_whatever_they_hold():
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])

    def sums(x):
        model = Convolutions()
        dropin = DropIn(model)
        torch.where(mask.unsqueeze(1), model(x, attention_mask=mask), 0.0).square().sum().backward()
        return _sums(dropin)[0]

    x = torch.randn(2, 3, 5)
    expected = sums(x)
    assert expected[TOKENS].tolist() == [7.0] * 4
    torch.testing.assert_close(sums(x.masked_fill(~mask.unsqueeze(1), float("nan"))), expected)


@pytest.mark.parametrize("told", [True, False], ids=["two_masks", "one_mask"])
def test_whisper_counts_the_frames_of_its_encoder_and_the_tokens_of_its_decoder(told):
    model, batch = tiny_model("whisper"), tiny_batch("whisper")
    dropin = DropIn(model)
    frames, tokens = torch.tensor([40, 20, 10, 40]), torch.tensor([6, 5, 4, 1])
    batch["attention_mask"] = (torch.arange(40) < frames.unsqueeze(1)).long()
    if told:
        batch["decoder_attention_mask"] = (torch.arange(6) < tokens.unsqueeze(1)).long()
    model(**batch).loss.backward()
    expected = {"encoder": float(frames.sum() / 2), "decoder": float(tokens.sum()) if told else 24.0}
    for site, sums in zip(dropin.sites, _sums(dropin), strict=True):
        assert set(sums[TOKENS].tolist()) == {expected[site.name.split(".")[1]]}


def test_the_encoder_counts_its_own_frames_whatever_stands_around_it():
    """An adapter behind it, which shortens the output, or a decoder, whose tokens no mask was given for."""
    batch = tiny_batch("wav2vec2", padded=True)
    adapted = Wav2Vec2Model(Wav2Vec2Config(**SPEECH, add_adapter=True, num_adapter_layers=1, output_hidden_size=16))
    paired = SpeechEncoderDecoderModel(encoder=tiny_model("wav2vec2").wav2vec2, decoder=tiny_decoder())
    paired.config.decoder_start_token_id, paired.config.pad_token_id = 1, 0
    frames = int(adapted._get_feat_extract_output_lengths(batch["attention_mask"].sum(1), add_adapter=False).sum())
    for model, more in ((adapted, {}), (paired, {"labels": torch.full((4, 10), 3)})):
        dropin = DropIn(model.train())
        model(batch["input_values"], attention_mask=batch["attention_mask"], **more)[0].sum().backward()
        for site, sums in zip(dropin.sites, _sums(dropin), strict=True):
            assert set(sums[TOKENS].tolist()) == {40.0 if site.name.startswith("decoder") else float(frames)}


def test_outputs_without_gradient_are_not_recorded_and_those_of_evaluation_mode_are():
    model = tiny_mlp()
    dropin = DropIn(model)
    dropin.sites[0].watched(torch.randn(4, 10))
    for training in (True, False, True):
        model.train(training)(torch.randn(4, 6)).sum().backward()
    assert dropin.statistics[0].sums[TOKENS].tolist() == [12.0] * 10


def test_an_overflow_spoils_its_own_step_and_no_other():
    model = tiny_mlp()
    dropin = DropIn(model, DropInConfig(stop=None))
    x = torch.randn(4, 6)
    for scale in (1.0, float("inf"), 1.0):
        (model(x).sum() * scale).backward()
        dropin.step()
    known = dropin.statistics[0]
    assert torch.isfinite(known.averages).all()
    assert known.age.tolist() == [2] * 10


def test_second_order_gradients_are_the_stock_ones():
    def gradients(watch):
        model = tiny_mlp(activation=nn.Tanh)
        dropin = DropIn(model) if watch else None
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
        assert dropin is None or dropin.statistics[0].sums.isfinite().all()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(found, expected)


def test_a_replica_records_with_the_original():
    """As torch.nn.DataParallel makes them: copies that share every hook."""
    model = tiny_mlp()
    dropin = DropIn(model)
    replica = model._replicate_for_data_parallel()
    for key, module in model._modules.items():
        replica._modules[key] = module._replicate_for_data_parallel()
        for name, parameter in module._parameters.items():
            setattr(replica._modules[key], name, parameter * 1.0)
    for part in (model, replica):
        part(torch.randn(4, 6)).sum().backward()
    assert dropin.statistics[0].sums[TOKENS].tolist() == [8.0] * 10


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_watched_model_works_and_records_nothing_for_the_original(twin_of):
    model = tiny_mlp()
    dropin = DropIn(model)
    twin = twin_of(model)
    x = torch.randn(4, 6)
    twin(x).sum().backward()
    assert torch.equal(twin(x), model(x))
    assert not dropin.statistics[0].sums.any()
