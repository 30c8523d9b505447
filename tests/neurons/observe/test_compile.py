"""A watched model compiles wherever the stock model does, without a graph break, and is watched just the same."""

import shutil

import pytest
import torch
import transformers
from compilers import CountingBackend
from tiny import tiny_batch, tiny_mlp, tiny_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_neuroplastic import DropIn, DropInConfig
from neuroplastic_kernels.ffn_activation.neuron_sums import TOKENS

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="inductor on a CPU needs a C++ compiler"
)


class Speech(nn.Module):
    """As little of a speech model of transformers as has padding: its mask may be longer than its tokens."""

    main_input_name = "x"

    def __init__(self):
        super().__init__()
        self.net = tiny_mlp(outputs=6)

    def get_encoder(self):
        return self

    def _get_feat_extract_output_lengths(self, lengths):
        return lengths // 2

    def forward(self, x, attention_mask=None, recompute=False):
        return checkpoint(self.net, x, use_reentrant=False) if recompute else self.net(x)


class Classifier(nn.Module):
    """A head's model around it, as users train it."""

    def __init__(self):
        super().__init__()
        self.speech = Speech()

    def forward(self, x, attention_mask, recompute=False):
        return self.speech(x, attention_mask=attention_mask, recompute=recompute)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def _mask(batch, samples):
    mask = torch.ones(batch, samples, dtype=torch.long)
    mask[1:, samples // 2 :] = 0
    return mask


def _steps(model, dropin, call, batches):
    """What training steps on `batches` gave: losses, gradients, sums."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for batch in batches:
        output = call(**batch)
        loss = output.square().mean() if isinstance(output, torch.Tensor) else output.loss
        loss.backward()
        seen += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        seen.append(torch.cat([known.sums for known in dropin.statistics], 1))
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    assert all(known.weight.all() for known in dropin.statistics)  # `step` saw what the passes recorded
    return seen


def _assert_alike(found, expected, **tolerances):
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, **{"rtol": 1e-6, "atol": 1e-7, **tolerances})


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_compiled_wav2vec2_trains_as_in_eager_mode(backend):
    if backend == "fused":
        pytest.importorskip("triton")

    def run(compiler=None):
        model = tiny_model("wav2vec2", num_hidden_layers=1)
        model.freeze_feature_encoder()  # otherwise it marks its input as requiring gradients, which breaks the graph
        dropin = DropIn(model, DropInConfig(backend=backend, stop=None))
        with torch.no_grad():  # transformers puts hooks of its own in place, which it cannot do in a graph
            model(**tiny_batch("wav2vec2"))
        call = model if compiler is None else torch.compile(model, backend=compiler, fullgraph=True)
        return _steps(model, dropin, call, [tiny_batch("wav2vec2", padded=True, seed=seed) for seed in range(3)])

    stock = tiny_model("wav2vec2", num_hidden_layers=1)
    stock.freeze_feature_encoder()
    try:
        stock(**tiny_batch("wav2vec2"))
        torch.compile(stock, backend="eager", fullgraph=True)(**tiny_batch("wav2vec2", padded=True))
    except torch._dynamo.exc.Unsupported as error:
        pytest.skip(f"transformers {transformers.__version__} itself breaks the graph: {str(error).splitlines()[0]}")
    compiler = CountingBackend()
    _assert_alike(run(compiler), run())
    assert compiler.graphs == 1  # further steps need no further graph


def test_unwatched_steps_and_evaluation_share_a_graph_of_their_own():
    def run(compiler=None):
        model = Classifier()
        dropin = DropIn(model, DropInConfig(observe_every=2, stop=None))
        call = model if compiler is None else torch.compile(model, backend=compiler, fullgraph=True)
        torch.manual_seed(1)
        batches = [{"x": torch.randn(3, 8, 6), "attention_mask": _mask(3, 8)} for _ in range(5)]
        return [*_steps(model, dropin, call, batches), call.eval()(**batches[0]).detach()]

    compiler = CountingBackend()
    _assert_alike(run(compiler), run())
    assert compiler.graphs == 2  # without dropout, an unwatched step and an evaluation are the same


@pytest.mark.parametrize("rate", [1, 2])
def test_other_lengths_cost_no_more_graphs_than_for_the_stock_model(rate):
    def graphs(watch):
        torch._dynamo.reset()
        model, compiler = Classifier(), CountingBackend()
        dropin = DropIn(model, DropInConfig(stop=None)) if watch else None
        call = torch.compile(model, backend=compiler, fullgraph=True)
        for frames in (20, 16, 12, 8):
            mask = _mask(3, rate * frames)
            call(torch.randn(3, frames, 6), mask).square().sum().backward()
            if dropin is not None:
                assert dropin.statistics[0].sums[TOKENS].unique().tolist() == [int(mask.sum()) // rate]
                dropin.step()
        return compiler.graphs

    assert graphs(watch=True) == graphs(watch=False)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_several_passes_may_wait_for_their_backward(compiler):
    def run(compiler=None):
        model = tiny_mlp()
        dropin = DropIn(model)
        call = model if compiler is None else torch.compile(model, backend=compiler, fullgraph=True)
        torch.manual_seed(1)
        first, second = call(torch.randn(2, 3, 6)), call(torch.randn(2, 3, 6))
        (first - second).square().sum().backward()
        return [dropin.statistics[0].sums, *(p.grad for p in model.parameters())]

    _assert_alike(run(compiler), run(), rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_compiles_too():
    def run(compiler=None):
        model = Classifier()
        dropin = DropIn(model)
        call = model if compiler is None else torch.compile(model, backend=compiler, fullgraph=True)
        torch.manual_seed(1)
        call(torch.randn(3, 8, 6), _mask(3, 8), recompute=True).square().sum().backward()
        return [dropin.statistics[0].sums, *(p.grad for p in model.parameters())]

    _assert_alike(run("aot_eager"), run())


def test_a_second_order_gradient_loses_no_later_observation():
    model = tiny_mlp()
    dropin = DropIn(model)
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 6)
    for create_graph in (True, False):
        call(x).sum().backward(create_graph=create_graph)
        model.zero_grad()
    assert dropin.statistics[0].sums[TOKENS].tolist() == [10.0] * 10
