"""The fused layer computes what the stock layer computes, and sees what its observer would have seen.

Without a CUDA device the real kernels run in Triton's interpreter.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_batch, tiny_model

from hf_neuroplastic import DropIn, DropInConfig, unpatch
from hf_neuroplastic.neurons.observe.fused_forward import REPLACED, fused
from neuroplastic_kernels.ffn_activation.neuron_sums import ABS_OUTPUT

pytest.importorskip("triton")
FUSED = ["wav2vec2", "hubert", "wavlm", "unispeech", "ast", "vit"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _batch(family, **options):
    return {name: value.to(DEVICE) for name, value in tiny_batch(family, **options).items()}


def _pass(family, backend, *, prepare=None, padded=False, **changes):
    """Logits, gradients and sums of one training pass."""
    model = tiny_model(family, **changes).to(DEVICE)
    if prepare:
        prepare(model)
    dropin = DropIn(model, DropInConfig(backend=backend, stop=None))
    torch.manual_seed(1)
    outputs = model(**_batch(family, padded=padded))
    outputs.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return model, dropin, outputs.logits.detach(), gradients, torch.cat([s.sums for s in dropin.statistics], 1)


def _assert_alike(first, second):
    _, _, logits, gradients, sums = first
    _, _, expected_logits, expected_gradients, expected_sums = second
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(sums, expected_sums, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FUSED)
def test_outputs_gradients_and_moments_are_those_of_the_stock_layer(family):
    found = _pass(family, "fused")
    assert all(fused(site.container) for site in found[1].sites)
    _assert_alike(found, _pass(family, "reference"))


def test_padding_is_masked():
    _assert_alike(_pass("wav2vec2", "fused", padded=True), _pass("wav2vec2", "reference", padded=True))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("family", "dropout"), [("wav2vec2", 0.5), ("ast", 0.0)])
def test_gradient_checkpointing_changes_nothing(family, dropout, reentrant):
    """Nor does it change which elements the dropout takes: the pass that is run again draws as the first one did."""
    changes = {"activation_dropout": dropout} if dropout else {}

    def checkpointed(model):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant and family == "ast":  # it passes gradients on only to inputs that require them
            model.enable_input_require_grads()

    _assert_alike(_pass(family, "fused", prepare=checkpointed, **changes), _pass(family, "fused", **changes))


def test_dropout_falls_on_the_layer_and_is_kept_in_expectation():
    model, dropin, *_ = _pass("wav2vec2", "fused", activation_dropout=0.5)
    container = dropin.sites[0].container
    x = torch.randn(200, 5, 16, device=DEVICE)
    dropped = torch.stack([container(x) for _ in range(2)])
    assert not torch.equal(*dropped)
    model.eval()
    torch.testing.assert_close(dropped.mean((0, 1, 2)), container(x).mean((0, 1)), rtol=0, atol=0.02)


def test_evaluation_and_unpatching_give_the_stock_forward_bit_for_bit():
    stock = tiny_model("ast").to(DEVICE).eval()
    model, dropin, *_ = _pass("ast", "fused")
    batch = _batch("ast")
    assert torch.equal(model.eval()(**batch).logits, stock(**batch).logits)
    dropin.unpatch()
    assert torch.equal(model.train()(**batch).logits, stock.train()(**batch).logits)
    assert not any(name in vars(module) for module in model.modules() for name in REPLACED)


def test_other_hooks_on_the_parts_are_still_called():
    model = tiny_model("ast").to(DEVICE)
    dropin = DropIn(model, DropInConfig(backend="fused", stop=None))
    called = []
    handle = dropin.sites[0].up.register_forward_hook(lambda *_: called.append(1))
    model(**_batch("ast")).loss.backward()
    assert called
    assert all(bool(known.sums.any()) for known in dropin.statistics)
    handle.remove()


def test_copies_and_pickles_work_on_their_own():
    model, *_ = _pass("ast", "fused")
    batch = _batch("ast")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(**batch).logits, model(**batch).logits)
        container = next(m for m in twin.modules() if fused(m))
        assert fused(container).site.container is container
        unpatch(twin)
        assert not any(name in vars(module) for module in twin.modules() for name in REPLACED)


def test_a_replica_computes_with_its_own_weights_and_is_watched():
    """As torch.nn.DataParallel makes them: copies that share every hook and attribute, with weights elsewhere."""
    _, dropin, *_ = _pass("wav2vec2", "fused")
    layer, before = dropin.sites[0].container, dropin.statistics[0].sums.clone()
    replica = layer._replicate_for_data_parallel()
    for key, part in layer._modules.items():
        replica._modules[key] = part._replicate_for_data_parallel()
        for name, parameter in part._parameters.items():
            setattr(replica._modules[key], name, parameter * 2.0)
    x = torch.randn(1, 3, 16, device=DEVICE)
    up, down = dropin.sites[0].up, dropin.sites[0].down
    z = F.gelu(F.linear(x, 2.0 * up.weight, 2.0 * up.bias))
    y = replica(x)
    torch.testing.assert_close(y, F.linear(z, 2.0 * down.weight, 2.0 * down.bias))
    y.sum().backward()
    gained = dropin.statistics[0].sums - before
    torch.testing.assert_close(gained[ABS_OUTPUT], z.detach().abs().sum((0, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["layer", "split"])
def test_a_whole_run_decides_and_replaces_as_the_reference_does(init):
    def run(backend):
        model = tiny_model("wav2vec2").to(DEVICE)
        config = DropInConfig(
            backend=backend,
            interval=2,
            maturity=1,
            max_fraction=0.1,
            threshold=float("inf"),
            stop=None,
            synaptic_lr=0.01,
            init=init,
        )
        dropin = DropIn(model, config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for seed in range(4):
            model(**_batch("wav2vec2", seed=seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            dropin.step(optimizer)
        return model, dropin

    (model, dropin), (expected_model, expected) = run("fused"), run("reference")
    for a, b in zip(dropin.statistics, expected.statistics, strict=True):
        assert a.age.tolist() == b.age.tolist()
        torch.testing.assert_close(a.scale, b.scale, rtol=1e-4, atol=0)
    for a, b in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a device")
def test_without_a_device_fused_is_an_error_and_auto_is_not(monkeypatch):
    monkeypatch.setattr("neuroplastic_kernels.dispatch.INTERPRETED", False)
    _pass("ast", "auto")
    with pytest.raises(RuntimeError, match=r"backend='fused' cannot run.*CUDA"):
        _pass("ast", "fused")


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_a_normal_step_never_waits_for_the_device(family):
    model = tiny_model(family).cuda()
    dropin = DropIn(model, DropInConfig(interval=2, maturity=1, threshold=float("inf"), stop=None, synaptic_lr=0.01))
    batch = _batch(family)
    torch.cuda.synchronize()
    for step in range(6):
        loss = model(**batch).loss
        loss.backward()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step compiles
        try:
            dropin.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(int(count) > 0 for count in dropin.replaced)
