"""8-bit state: exact where it must be, unbiased elsewhere, and the same inside kernels."""

import pytest
import torch

from neuroplastic_kernels.plasticity_step.eight_bit import (
    BLOCK,
    CODES,
    block_of,
    decode,
    decoded,
    encode,
    names,
    scales_shape,
    store,
)

CODE = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def values(numel, code, scale=1.0):
    drawn = torch.randn(numel, generator=torch.Generator().manual_seed(3)) * scale
    return drawn if code.dtype == torch.int8 else drawn.square()


@CODE
def test_every_code_survives_decoding_and_encoding(code):
    lowest = -code.levels if code.dtype == torch.int8 else 0
    codes = torch.arange(lowest, code.levels + 1).to(code.dtype)
    decoded = decode(codes, torch.full((-(-codes.numel() // BLOCK),), 3.0), code)
    again, scales = encode(decoded, 0.5, code)
    assert torch.equal(again, codes)
    torch.testing.assert_close(scales[0], torch.tensor(3.0))
    assert torch.equal(decoded.sort().values, decoded)  # codes are in the order of their values


@CODE
@pytest.mark.parametrize("numel", [1, 255, 256, 257, 5000])
def test_the_error_is_at_most_a_step_of_the_code(code, numel):
    exact = values(numel, code, 1e-5)
    codes, scales = encode(exact, torch.rand(numel), code)
    assert codes.dtype == code.dtype
    assert scales.shape == (-(-numel // BLOCK),)
    scale = scales.repeat_interleave(BLOCK)[:numel]
    root = lambda x: (x.abs() / scale) ** (1 / code.power)  # noqa: E731
    assert ((root(decode(codes, scales, code)) - root(exact)).abs() * code.levels).max() < 1.001


@CODE
def test_the_draw_makes_the_expected_value_exact(code):
    exact = values(BLOCK, code)
    draws = torch.linspace(0, 1, 4001)[:-1]
    mean = torch.stack([decode(*encode(exact, draw, code), code) for draw in draws.expand(BLOCK, -1).t()]).mean(0)
    torch.testing.assert_close(mean, exact, rtol=1e-3, atol=exact.abs().max().item() * 1e-5)


def test_a_moment_that_decays_slowly_does_decay():
    """Nearest rounding would leave v where it is: the decay of a step is smaller than a step of the code."""
    code = CODES["exp_avg_sq"]
    state = torch.full((BLOCK,), 0.5)
    state[0] = 1.0
    codes, scales = encode(state, 0.5, code)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        value = 0.999 * decode(codes, scales, code)
        value[0] = 1.0  # keeps the scale
        codes, scales = encode(value, torch.rand(BLOCK, generator=generator), code)
    expected = 0.5 * 0.999**500
    assert decode(codes, scales, code)[1:].mean() == pytest.approx(expected, rel=0.02)


def test_a_positive_second_moment_never_becomes_zero():
    v = torch.tensor([1.0, 1e-12, 0.0])
    codes, scales = encode(v, 0.999, CODES["exp_avg_sq"])
    assert (decode(codes, scales, CODES["exp_avg_sq"]) > 0).tolist() == [True, True, False]


@CODE
def test_zeros_stay_zero_and_a_bad_value_shows_in_its_block_only(code):
    exact = values(3 * BLOCK, code)
    exact[:BLOCK] = 0
    for bad in (torch.nan, torch.inf):
        exact[BLOCK + 7] = bad
        decoded = decode(*encode(exact, 0.5, code), code)
        assert torch.equal(decoded[:BLOCK], torch.zeros(BLOCK))
        assert not decoded[BLOCK : 2 * BLOCK].isfinite().any()
        assert decoded[2 * BLOCK :].isfinite().all()


@pytest.mark.parametrize("streams", [2, 3])
def test_moments_take_a_byte_each_and_a_scale(streams):
    moments = {name: values(5120, code).view(20, 256) for name, code in list(CODES.items())[:streams]}
    state = {name: torch.zeros(20, 256, dtype=CODES[name].dtype) for name in moments}
    state["scales"] = torch.zeros(scales_shape((20, 256), streams))
    assert names(state) == list(moments)
    store(state, moments)
    assert sum(each.nbytes for each in state.values()) / 5120 < 1.02 * streams
    for name, value in decoded(state).items():
        assert value.shape == (20, 256)
        assert (value - moments[name]).norm() < 0.02 * moments[name].norm()


@pytest.mark.parametrize(
    ("shape", "block", "scales"),
    [
        ((30, 768), 256, (2, 30, 3)),
        ((30, 384), 128, (2, 30, 3)),
        ((5, 2, 8), 16, (2, 5, 1)),
        ((0, 32), 32, (2, 0, 1)),
        ((300, 100), 256, (2, 1, 118)),  # no block lies in rows of 4 * 25 elements
        ((5000,), 256, (2, 1, 20)),
    ],
)
def test_blocks_lie_in_rows_where_rows_allow(shape, block, scales):
    assert block_of(shape) == block
    assert scales_shape(shape, 2) == scales


@pytest.mark.parametrize("shape", [(6, 384), (7, 16), (5, 3, 32)])
@CODE
def test_some_rows_have_the_codes_that_they_have_in_the_whole(code, shape):
    exact = torch.randn(shape) if code.dtype == torch.int8 else torch.rand(shape)
    draw = torch.rand(shape)
    codes, scales = encode(exact, draw, code)
    for start, stop in ((0, 2), (2, 5), (5, shape[0])):
        part, of_part = encode(exact[start:stop], draw[start:stop], code)
        assert torch.equal(part, codes[start:stop])
        assert torch.equal(of_part, scales.view(shape[0], -1)[start:stop].flatten())
