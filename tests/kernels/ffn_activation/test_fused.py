"""The fused op is the reference, in one pass: outputs, gradients and neuron_sums; in eager mode, compiled and checkpointed."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from neuroplastic_kernels import dispatch, ffn_activation
from neuroplastic_kernels.common.philox import philox
from neuroplastic_kernels.ffn_activation.neuron_sums import ABS_OUTPUT, ROWS, TOKENS
from neuroplastic_kernels.ffn_activation.reference import ACTIVATIONS

fused = pytest.importorskip("neuroplastic_kernels.ffn_activation.fused", exc_type=ImportError)

# Relative tolerance of one rounding to the dtype, which the interpreter does downwards for bfloat16.
ROUNDING = {"float32": 1e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def _run(h, bias, upstream, backend, neuron_sums=None, **options):
    """Output, gradients of h and bias, neuron_sums."""
    neuron_sums = torch.zeros(ROWS, h.shape[-1], device=h.device) if neuron_sums is None else neuron_sums
    inputs = [t.detach().requires_grad_() for t in (h, bias) if t is not None]
    z = ffn_activation(inputs[0], inputs[1] if bias is not None else None, neuron_sums, backend=backend, **options)
    return [z.detach(), *torch.autograd.grad(z, inputs, upstream), neuron_sums]


def _assert_like_reference(h, bias, upstream, rounding, **options):
    """The fused op on these tensors equals the reference on the same numbers in float32, rounded once."""
    in_float = [None if t is None else t.float() for t in (h, bias, upstream)]
    found, expected = _run(h, bias, upstream, "fused", **options), _run(*in_float, "reference", **options)
    assert found[0].dtype == found[1].dtype == h.dtype
    for actual, wanted in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(actual.float(), wanted, rtol=rounding, atol=1e-5)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-5, atol=1e-5)  # float32 sums whatever the dtype


def _tensors(shape, device, dtype="float32", bias=True):
    dtype = getattr(torch, dtype)
    h, upstream = (torch.randn(shape).mul(2).to(device, dtype) for _ in range(2))
    return h, torch.randn(shape[-1]).to(device, dtype) if bias else None, upstream


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_dtype(activation, dtype, device):
    _assert_like_reference(*_tensors((3, 11, 150), device, dtype), ROUNDING[dtype], activation=activation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5,), (0, 4), (3, 0), (1, 33), (17, 5), (2, 3, 7, 260)])
def test_every_shape(shape, bias, device):
    _assert_like_reference(*_tensors(shape, device, bias=bias), 1e-5)


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_tokens_may_be_divided_among_any_number_of_programs(programs, device, monkeypatch):
    monkeypatch.setattr(fused, "BACKWARD_PROGRAMS", programs)
    _assert_like_reference(*_tensors((300, 3), device), 1e-5)


def test_moments_may_be_a_range_of_columns_of_a_wider_table(device):
    h, bias, upstream = _tensors((7, 20), device)
    table = torch.zeros(ROWS, 50, device=device)
    found = _run(h, bias, upstream, "fused", neuron_sums=table[:, 11:31])[-1]
    assert torch.equal(found, _run(h, bias, upstream, "fused")[-1])
    assert not table[:, :11].any()
    assert not table[:, 31:].any()
    transposed = torch.zeros(20, ROWS, device=device).T
    assert torch.equal(found, _run(h, bias, upstream, "fused", neuron_sums=transposed)[-1])


def test_masked_tokens_are_not_counted_whatever_they_hold(device):
    h, bias, upstream = _tensors((2, 9, 20), device)
    mask = torch.rand(2, 9, device=device) > 0.4
    _assert_like_reference(h, bias, upstream, 1e-5, token_mask=mask)
    expected = _run(h, bias, upstream, "fused", token_mask=mask)[-1]
    assert expected[TOKENS].tolist() == [float(mask.sum())] * 20
    for poison in (h, upstream):
        poison[~mask] = float("nan")
    assert torch.equal(_run(h, bias, upstream, "fused", token_mask=mask)[-1], expected)


def test_extreme_inputs_behave_as_in_the_reference(device):
    values = torch.tensor([[-1e30, -90.0, -0.0, 0.0, 90.0, 1e30, float("nan")]], device=device)
    for activation in ("relu", "silu", "quick_gelu", "gelu"):
        found = ffn_activation(values, None, activation=activation, backend="fused")
        expected = ffn_activation(values, None, activation=activation, backend="reference")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-30, equal_nan=True)


def test_moments_accumulate_over_micro_batches(device):
    h, bias, upstream = _tensors((24, 10), device)
    whole = _run(h, bias, upstream, "fused")[-1]
    neuron_sums = torch.zeros_like(whole)
    for part in (slice(0, 5), slice(5, 24)):
        _run(h[part], bias, upstream[part], "fused", neuron_sums)
    torch.testing.assert_close(neuron_sums, whole, rtol=1e-5, atol=1e-5)


def test_strides_do_not_matter(device):
    h, bias, _ = _tensors((6, 10), device)
    strided = h.T.contiguous().T
    expanded = torch.ones(1, 1, device=device).expand(6, 10)
    spread = torch.stack([bias, bias], 1)[:, 0]
    for found, expected in zip(
        _run(strided, spread, expanded, "fused"), _run(h, bias, expanded.contiguous(), "fused"), strict=True
    ):
        assert torch.equal(found, expected)


def _kept(seed, tokens, width, rate):
    """[tokens, width] bool: which elements dropout keeps, from the counters the kernels promise to use."""
    groups = torch.arange(-(-width // 4))
    words = [torch.stack(philox(seed, groups, token, 0, 0), 1).reshape(-1)[:width] for token in range(tokens)]
    return (torch.stack(words) >> 8).float() * 2.0**-24 >= rate


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_dropout_is_drawn_from_its_counters_and_drawn_again_in_the_backward_pass(rate, device):
    h, bias, upstream = _tensors((6, 270), device)
    torch.manual_seed(3)
    seed = torch.randint(2**62, (1,), dtype=torch.int64, device=device)
    torch.manual_seed(3)
    found = _run(h, bias, upstream, "fused", dropout=rate)
    factor = _kept(int(seed), 6, 270, rate).to(device) / (1.0 - rate if rate < 1.0 else 1.0)
    plain = _run(h, bias, upstream * factor, "fused")
    torch.testing.assert_close(found[0], plain[0] * factor)
    for actual, expected in zip(found[1:], plain[1:], strict=True):  # the neuron_sums are those before dropout
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_dropout_drops_its_share_and_only_in_training(device):
    h = torch.ones(64, 1000, device=device)
    dropped = (ffn_activation(h, None, activation="relu", dropout=0.1, backend="fused") == 0).float().mean().item()
    assert abs(dropped - 0.1) < 5 * (0.1 * 0.9 / 64_000) ** 0.5
    assert torch.equal(ffn_activation(h, None, activation="relu", dropout=0.1, training=False, backend="fused"), h)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(device):
    tensors = _tensors((40, 300), device)

    def run(seed):
        torch.manual_seed(seed)
        return _run(*tensors, "fused", dropout=0.5)

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_autocast(device):
    linear = torch.nn.Linear(8, 12).to(device)
    x, neuron_sums = torch.randn(5, 8, device=device), torch.zeros(ROWS, 12, device=device)
    with torch.autocast(device, torch.bfloat16):
        z = ffn_activation(F.linear(x, linear.weight), linear.bias, neuron_sums, backend="fused")
    z.float().sum().backward()
    assert z.dtype is torch.bfloat16
    assert linear.bias.grad.dtype is torch.float32
    torch.testing.assert_close(neuron_sums[ABS_OUTPUT], F.gelu(linear(x)).abs().sum(0), rtol=2e-2, atol=2e-2)


class _Net(torch.nn.Module):
    """Two layers in a row, each with neuron_sums of its own, behind the dispatch."""

    def __init__(self, device, backend, dropout=0.0):
        super().__init__()
        self.up, self.down = torch.nn.Linear(6, 10), torch.nn.Linear(10, 6)
        self.backend, self.dropout = backend, dropout
        self.neuron_sums = [torch.zeros(ROWS, 10, device=device) for _ in range(2)]
        self.to(device)

    def forward(self, x):
        for neuron_sums in self.neuron_sums:
            h = F.linear(x, self.up.weight)
            x = self.down(ffn_activation(h, self.up.bias, neuron_sums, dropout=self.dropout, backend=self.backend))
        return x


def _train(net, call=None, steps=2):
    """Gradients and neuron_sums of `steps` micro-batches; `call` wraps the forward pass."""
    torch.manual_seed(5)
    x = torch.randn(2, 7, 6).to(net.up.weight.device).requires_grad_()
    torch.manual_seed(6)
    call = net if call is None else call
    for _ in range(steps):
        call(x).square().sum().backward()
    return [x.grad, *(p.grad for p in net.parameters()), *net.neuron_sums]


def _net(device, backend="fused", dropout=0.0):
    torch.manual_seed(4)
    return _Net(device, backend, dropout)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, device):
    expected = _train(_net(device, dropout=0.3))
    net = _net(device, dropout=0.3)
    found = _train(net, lambda x: checkpoint(net, x, use_reentrant=reentrant))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break_and_the_moments_arrive(compiler, device):
    if compiler == "inductor" and device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor on a CPU needs a C++ compiler")
    expected = _train(_net(device, "reference"))
    torch._dynamo.reset()
    net = _net(device)
    found = _train(net, torch.compile(net, backend=compiler, fullgraph=True))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    dropping = [
        _train(net, torch.compile(net, backend=compiler, fullgraph=True))
        for net in (_net(device, dropout=0.3), _net(device, dropout=0.3))
    ]
    for actual, wanted in zip(*dropping, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_moments_that_require_grad_get_the_sums_while_several_passes_wait(compiler, device):
    torch._dynamo.reset()
    expected, net = _net(device, "reference"), _net(device)
    net.neuron_sums = [neuron_sums.requires_grad_() for neuron_sums in net.neuron_sums]
    x = torch.randn(2, 3, 7, 6, device=device)
    for each in (expected, net):
        call = each if compiler is None or each is expected else torch.compile(each, backend=compiler, fullgraph=True)
        (call(x[0]) - call(x[1])).square().sum().backward()
    for probe, neuron_sums in zip(net.neuron_sums, expected.neuron_sums, strict=True):
        torch.testing.assert_close(probe.grad, neuron_sums, rtol=1e-4, atol=1e-5)
        assert not probe.any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_operator_keeps_its_promises(bias, device):
    """Schema, fake form and autograd registration, as torch.library checks them."""
    h, b, upstream = _tensors((3, 5), device, bias=bias)
    seed, neuron_sums = torch.tensor([7], device=device), torch.zeros(ROWS, 5, device=device)
    mask = torch.tensor([True, False, True], device=device)
    arguments = (h.requires_grad_(), None if b is None else b.requires_grad_(), seed, neuron_sums, mask, "gelu", 0.5)
    torch.library.opcheck(fused._forward, arguments)
    h, b = (None if t is None else t.detach() for t in (h, b))
    for observe in (True, False):
        torch.library.opcheck(fused._backward, (upstream, h, b, seed, mask, "gelu", 0.5, observe))


ERRORS = [
    ({"activation": "swish2"}, ValueError, ["activation", "'swish2'", "'gelu'"]),
    ({"bias": torch.zeros(4)}, ValueError, ["bias", "(3,)", "(4,)"]),
    ({"neuron_sums": torch.zeros(ROWS, 4)}, ValueError, ["neuron_sums", str((ROWS, 3)), str((ROWS, 4))]),
    ({"neuron_sums": torch.zeros(ROWS, 3).double()}, ValueError, ["neuron_sums", "float32", "float64"]),
    ({"token_mask": torch.ones(3, dtype=torch.bool)}, ValueError, ["token_mask", "(2,)", "(3,)"]),
    ({"dropout": 1.5}, ValueError, ["dropout", "[0, 1]", "1.5"]),
    ({"h": torch.zeros(2, 3).double()}, RuntimeError, ["float64", "float32", "backend='auto'"]),
]


@pytest.mark.parametrize(("arguments", "error", "words"), ERRORS)
def test_errors(arguments, error, words, device):
    given = {"h": torch.zeros(2, 3), "bias": None, "neuron_sums": torch.zeros(ROWS, 3), **arguments}
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with pytest.raises(error) as caught:
        ffn_activation(**given, backend="fused")
    for word in words:
        assert word in str(caught.value)


def test_without_cuda_the_fused_form_is_refused_and_auto_takes_the_reference(device, monkeypatch):
    h = torch.zeros(2, 3)
    assert dispatch.select("ffn_activation", "auto", [h]) is dispatch.ffn_activation_reference
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"CUDA.*cpu.*TRITON_INTERPRET=1"):
        ffn_activation(h, None, backend="fused")
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    with pytest.raises(RuntimeError, match=r"Triton is not installed"):
        ffn_activation(h, None, backend="fused")


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    linear, neuron_sums = torch.nn.Linear(8, 12).cuda(), torch.zeros(ROWS, 12, device="cuda")
    x, mask = torch.randn(5, 8, device="cuda"), torch.ones(5, dtype=torch.bool, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            h = F.linear(x, linear.weight)
            ffn_activation(h, linear.bias, neuron_sums, dropout=0.1, token_mask=mask, backend="fused").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
