"""The generator is Philox4x32-10, and its uniforms and normals have the promised moments."""

import torch

from neuroplastic_kernels.common.philox import normal, philox, uniform


def _words(seed, index, event, site, tensor):
    return [int(word) for word in philox(seed, torch.tensor(index), event, site, tensor)]


def test_known_answers():
    """The three vectors of the Random123 distribution for philox4x32, 10 rounds."""
    ones, full = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
    assert _words(0, 0, 0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _words(full, ones, ones, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822
    assert _words(key, *counter) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_uniform_is_uniform():
    draws = uniform(1, torch.arange(100_000), 2, 3, 4)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    histogram = torch.histc(draws, 10, 0.0, 1.0)
    assert (histogram - 10_000).abs().max() < 500


def test_normal_is_normal_and_finite():
    draws = normal(1, torch.arange(100_000), 2, 3, 4).double()
    assert torch.isfinite(draws).all()
    moments = [(draws**power).mean().item() for power in (1, 2, 3, 4)]
    for found, expected, tolerance in zip(moments, (0, 1, 0, 3), (0.02, 0.02, 0.06, 0.15), strict=True):
        assert abs(found - expected) < tolerance
