"""All sites scaled in one launch equal each site scaled by the reference."""

import pytest
import torch

from neuroplastic_kernels import synaptic_scale

pytest.importorskip("triton")

RANGE = (0.1, 2.0)
# Order of sums in the mean, and one rounding of a half type.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SHAPES = [(5, 3), (1, 1), (40, 300), (3, 0), (0, 4), (7, 2, 5)]


def _arguments(shapes, dtype=torch.float32):
    """Weights, firsts, scale, average, weight and active of these sites, one slot between each two."""
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    firsts = [sum(shape[0] + 1 for shape in shapes[:index]) for index in range(len(shapes))]
    total = sum(shape[0] + 1 for shape in shapes)
    observed = torch.rand(total) * (torch.rand(total) > 0.1)
    return (
        weights,
        firsts,
        torch.empty(total).uniform_(0.2, 1.9),
        torch.rand(total) * observed,
        observed,
        torch.rand(total) > 0.1,
    )


def _copies(arguments, device):
    weights, firsts, *flat = arguments
    return (
        [weight.to(device, copy=True) for weight in weights],
        firsts,
        *(tensor.to(device, copy=True) for tensor in flat),
    )


def _assert_like_reference(arguments, device, **options):
    found, expected = _copies(arguments, device), _copies(arguments, "cpu")
    options = {"rate": 0.1, "target": "layer", "scale_range": RANGE, **options}
    synaptic_scale(*found, backend="fused", **options)
    options.pop("workspace", None)
    rtol = max(TOLERANCE[weight.dtype] for weight in arguments[0])
    synaptic_scale(*expected, backend="reference", **options)
    for actual, goal in zip([*found[0], *found[2:]], [*expected[0], *expected[2:]], strict=True):
        torch.testing.assert_close(actual.cpu(), goal, rtol=rtol, atol=0.0, equal_nan=True)
    assert not all(torch.equal(a, b) for a, b in zip(expected[0], arguments[0], strict=True))


@pytest.mark.parametrize(
    ("rate", "target", "dtype"),
    [
        *((0.5, "layer", dtype) for dtype in TOLERANCE),
        *((rate, target, torch.float32) for rate, target in ((0.001, "layer"), (0.1, 0.5), (100.0, 2))),
    ],
)
def test_equals_the_reference(rate, target, dtype, device):
    arguments = _arguments(SHAPES, dtype)
    average = arguments[3]
    average[:3] = torch.tensor([float("nan"), float("inf"), 0.0]) if target != "layer" else 0.0
    _assert_like_reference(arguments, device, rate=rate, target=target)


def test_a_site_of_many_neurons(device):
    _assert_like_reference(_arguments([(1100, 1)]), device)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_mean_changes_nothing_in_its_site_only(value, device):
    arguments = _arguments([(5, 3), (4, 2)])
    arguments[4][:], arguments[5][:] = 0.5, True
    arguments[3][2] = value
    found = _copies(arguments, device)
    synaptic_scale(*found, rate=0.1, target="layer", scale_range=RANGE, backend="fused")
    assert torch.equal(found[0][0].cpu(), arguments[0][0])
    assert not torch.equal(found[0][1].cpu(), arguments[0][1])
    _assert_like_reference(arguments, device)


def test_forty_eight_sites_at_once(device):
    _assert_like_reference(_arguments([(1 + index % 4, 1 + index % 3) for index in range(48)]), device)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_strides_and_mixed_dtypes_do_not_matter(dtype, device):
    """Transposed weights, and convolutions laid out channels last or with gaps."""
    plain = _copies(_arguments([(20, 30), (6, 4, 3, 3), (6, 4, 3, 3)]), device)
    plain[0][1] = plain[0][1].to(dtype)
    strided = _copies(plain, device)
    strided[0][0] = strided[0][0].T.contiguous().T
    strided[0][1] = strided[0][1].to(memory_format=torch.channels_last)
    gaps = torch.zeros(6, 5, 4, 7, device=device)
    gaps[:, :4, :3, ::2][..., :3] = strided[0][2]
    strided[0][2] = gaps[:, :4, :3, ::2][..., :3]
    for arguments in (plain, strided):
        synaptic_scale(*arguments, rate=0.5, target=0.7, scale_range=RANGE, backend="fused")
    for actual, expected in zip([*strided[0], strided[2]], [*plain[0], plain[2]], strict=True):
        assert torch.equal(actual, expected)
    assert not any(gap.any() for gap in (gaps[:, 4:], gaps[:, :, 3:], gaps[..., 1::2]))


def test_no_sites_is_no_work(device):
    empty = torch.zeros(0, device=device)
    synaptic_scale([], [], empty, empty, empty, empty.bool(), rate=0.1, target=1.0, scale_range=RANGE, backend="fused")


def test_a_workspace_follows_the_weights(device):
    """Called again, with the same weights, with others in their place, and with fewer sites."""
    workspace = {}
    arguments = _arguments([(5, 3), (4, 2)])
    for shapes in ([(5, 3), (4, 2)], [(5, 3)]):
        for _ in range(2):
            arguments = _arguments(shapes)
            _assert_like_reference(arguments, device, workspace=workspace)
    found = _copies(arguments, device)
    for _ in range(2):
        synaptic_scale(*found, rate=0.1, target=1.0, scale_range=RANGE, backend="fused", workspace=workspace)
    held = workspace["synaptic_scale"]
    synaptic_scale(*found, rate=0.1, target=1.0, scale_range=RANGE, backend="fused", workspace=workspace)
    assert workspace["synaptic_scale"] is held


def test_autograd_learns_what_was_written(device):
    weights, firsts, scale, *rest = _copies(_arguments([(5, 3)]), device)
    parameter = torch.nn.Parameter(weights[0])
    before = parameter._version, scale._version, rest[0]._version
    synaptic_scale([parameter.detach()], firsts, scale, *rest, rate=0.1, target=1.0, scale_range=RANGE, backend="fused")
    assert parameter._version > before[0]
    assert scale._version > before[1]
    assert rest[0]._version == before[2]


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    arguments = _copies(_arguments([(5, 3)]), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for target in (0.5, "layer"):
            synaptic_scale(*arguments, rate=0.1, target=target, scale_range=RANGE, backend="fused")
    finally:
        torch.cuda.set_sync_debug_mode("default")
