"""Counter-based random numbers: the same bits for the same counter, whatever the grid, rank or device.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), the generator that
CUDA, Triton and PyTorch use. Here the counter is spelt out: (logical element index, event, site, tensor), so a number belongs
to an element of a tensor and not to the order in which elements were visited.
"""

import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = 0xFFFFFFFF


def philox(
    seed: int, index: Tensor, event: int | Tensor, site: int, tensor: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words per element of `index`.

    Args:
        seed: the 64-bit key.
        index: int64, any shape: logical element indices, below 2**32.
        event, site, tensor: the other three words of the counter; event may be an int64 scalar on the device.

    Returns:
        Four int64 tensors of `index`'s shape holding values in [0, 2**32).
    """
    key = [seed & _LOW, (seed >> 32) & _LOW]
    counter = [index & _LOW] + [torch.zeros_like(index) + (word & _LOW) for word in (event, site, tensor)]
    for _ in range(ROUNDS):
        # int64 products wrap, which leaves all 64 bits right; the mask undoes the sign extension of the shift.
        products = [MULTIPLIERS[0] * counter[0], MULTIPLIERS[1] * counter[2]]
        high = [(product >> 32) & _LOW for product in products]
        low = [product & _LOW for product in products]
        counter = [high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]]
        key = [(word + weyl) & _LOW for word, weyl in zip(key, WEYL, strict=True)]
    return counter[0], counter[1], counter[2], counter[3]


def uniform(seed: int, index: Tensor, event: int, site: int, tensor: int) -> Tensor:
    """float32 in [0, 1) with 24 random bits, of `index`'s shape; arguments as for `philox`."""
    word, *_ = philox(seed, index, event, site, tensor)
    return (word >> 8).to(torch.float32) * 2.0**-24


def normal(seed: int, index: Tensor, event: int, site: int, tensor: int) -> Tensor:
    """Standard normal float32 of `index`'s shape (Box-Muller, one number per counter); arguments as for `philox`."""
    first, second, *_ = philox(seed, index, event, site, tensor)
    radius = ((first >> 8) + 1).to(torch.float32) * 2.0**-24  # in (0, 1]: the logarithm stays finite
    angle = (second >> 8).to(torch.float32) * 2.0**-24
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle)
