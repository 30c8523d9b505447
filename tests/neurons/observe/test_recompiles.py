"""Surgery under torch.compile: no graph is compiled twice, and the run is that of eager mode."""

import accelerate.utils
import pytest
import torch
from compilers import CountingBackend
from tiny import tiny_batch, tiny_mlp, tiny_model
from torch._dynamo.utils import counters

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic

STEPS = 22
BUSY = {"interval": 2, "maturity": 1, "max_fraction": 0.1, "threshold": float("inf")}
CONFIGS = {
    "replaces": (DropInConfig(**BUSY, stop=None, synaptic_lr=0.01), 1),
    "grows and prunes": (DropInConfig.plasticity(4, **BUSY), 1),
    "watches every other step": (DropInConfig(**BUSY, stop=None, observe_every=2), 2),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def _whole(model, backend):
    return torch.compile(model, backend=backend)


def _each_layer(model, backend):
    for layer in model.audio_spectrogram_transformer.layers:
        layer.compile(backend=backend)
    return model


def _trained(family, config, compiled=None):
    """What a run left: weights and statistics. After as many steps as there are graphs, another one is an error."""
    config, graphs = config
    model = tiny_model(family, num_hidden_layers=1)
    if family == "wav2vec2":
        model.freeze_feature_encoder()  # otherwise it marks its input as requiring gradients, which breaks the graph
    dropin = DropIn(model, config, total_steps=STEPS)
    with torch.no_grad():
        model(**tiny_batch(family))  # transformers puts its own hooks in place
    optimizer, call = NeuroPlastic(model.parameters(), lr=1e-3), compiled(model) if compiled else model
    for step in range(STEPS):
        with torch._dynamo.config.patch(error_on_recompile=step >= graphs):
            call(**tiny_batch(family, padded=family == "wav2vec2", seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    assert dropin.events >= 10
    known = [torch.stack([*s.averages, s.weight, s.age, s.active, s.scale]) for s in dropin.statistics]
    return [*(p.detach() for p in model.parameters()), *known]


@pytest.mark.parametrize(("family", "way"), [("wav2vec2", _whole), ("ast", _each_layer)], ids=["wav2vec2", "ast"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_events_compile_nothing_anew(family, way, config):
    compiler = CountingBackend()
    found = _trained(family, config, lambda model: way(model, compiler))
    if not counters["graph_break"]:  # transformers 5.10 itself breaks wav2vec2's
        assert compiler.graphs == config[1]
    for actual, wanted in zip(found, _trained(family, config), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


def _regions(model, backend):
    return accelerate.utils.compile_regions(model, backend=backend)


@pytest.mark.parametrize(("way", "backend"), [(_regions, "auto"), (_each_layer, "fused")], ids=["auto", "fused"])
def test_the_layers_of_a_stack_share_one_graph(way, backend):
    """Otherwise a stack of more layers than torch's limit of recompiles would run in eager mode from there on."""
    if backend == "fused":
        pytest.importorskip("triton")
    elif not hasattr(accelerate.utils, "compile_regions"):
        pytest.skip("accelerate compiles regions since 1.7")

    def graphs(watch):
        torch._dynamo.reset()
        model, compiler = tiny_model("ast", num_hidden_layers=3), CountingBackend()
        dropin = DropIn(model, DropInConfig(backend=backend, stop=None)) if watch else None
        way(model, compiler)(**tiny_batch("ast")).loss.backward()
        assert dropin is None or all(known.sums.any() for known in dropin.statistics)
        return compiler.graphs

    assert graphs(watch=True) == graphs(watch=False)


@pytest.mark.parametrize("optimizer", [NeuroPlastic, torch.optim.AdamW])
def test_a_whole_training_step_may_be_compiled(optimizer):
    """`DropIn.step` and `NeuroPlastic.step` run as they are in it, beside the graphs of the rest."""

    def run(compile_step):
        torch._dynamo.reset()
        model = tiny_mlp()
        dropin, stepper = DropIn(model, DropInConfig(**BUSY, stop=None)), optimizer(model.parameters(), lr=1e-2)

        def step(x):
            loss = model(x).square().mean()
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            dropin.step(stepper)
            return loss

        call = torch.compile(step, backend="aot_eager") if compile_step else step
        torch.manual_seed(1)
        for index in range(STEPS):
            with torch._dynamo.config.patch(error_on_recompile=index >= 2):  # in the second, state is no longer new
                call(torch.randn(5, 6))
        assert (dropin.step_count, dropin.events) == (STEPS, STEPS // 2)
        return [*(p.detach() for p in model.parameters()), dropin.statistics[0].averages]

    for actual, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
