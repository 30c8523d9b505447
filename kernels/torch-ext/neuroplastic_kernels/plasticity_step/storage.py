"""What lies between the tensors of a step as they are kept and the formulas: half precision, 8-bit state.

Before the formulas a gradient is multiplied by its factor, and half precision and 8-bit codes are widened to float32; after
them parameters and state are narrowed again. Random numbers are Philox words with the counter (element, step, 0, tensor): the
first rounds p, the others m, v and a.
"""

from typing import Any

import torch
from torch import Tensor

from ..common.philox import philox
from . import eight_bit
from .passes import Shard


def state_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's state and of its arithmetic."""
    return torch.float32 if param.dtype in (torch.float16, torch.bfloat16) else param.dtype


def is_flat(tensor: Tensor) -> bool:
    """Whether a tensor is one run of memory of this process: contiguous, no subclass such as a sharded DTensor, and its numbers
    as they lie there."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()
    return is_plain and tensor.is_contiguous() and (tensor.data_ptr() != 0 or tensor.numel() == 0)


def widened(
    param: Tensor, grad: Tensor, state: dict[str, Tensor], factor: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """p, g and the state in the dtype of the arithmetic: the tensors themselves where they are of this dtype already."""
    dtype = state_dtype(param)
    g = grad.to(dtype)
    if factor is not None:
        g = g * factor.to(g.device, dtype)
    return param.to(dtype), g, state | eight_bit.decoded(state)


def narrow(
    param: Tensor,
    state: dict[str, Tensor],
    p: Tensor,
    values: dict[str, Tensor],
    number: int,
    rule: Any,
    shard: Shard | None,
) -> None:
    """Puts p and the new state where they are kept, rounded."""
    rounds = rule.stochastic_rounding and param.dtype == torch.bfloat16
    if rounds or "scales" in state:
        index = element_numbers(p, shard)
        words = philox(rule.seed, index, state["step"].to(p.device, torch.int64), 0, number)
        p = rounded_to_bfloat16(p.contiguous(), words[0]) if rounds else p
        eight_bit.store(state, values, words[1:])
    if p.dtype != param.dtype:
        param.copy_(p)


def element_numbers(p: Tensor, shard: Shard | None) -> Tensor:
    """Of the elements of p within the whole that p is a shard of: the same however a tensor is split."""
    shape, starts = (p.shape, [0] * p.ndim) if shard is None else shard
    index = torch.zeros((), dtype=torch.int64, device=p.device)
    for size, start, full in zip(p.shape, starts, shape, strict=True):
        index = (index * full).unsqueeze(-1) + torch.arange(start, start + size, device=p.device)
    return index


def rounded_to_bfloat16(values: Tensor, word: Tensor) -> Tensor:
    """float32 values without their lower 16 bits, rounded up with the probability these stand for. word: random bits."""
    bits = values.view(torch.int32) + (word & 0xFFFF).to(torch.int32)
    return torch.where(values.isfinite(), (bits & -65536).view(torch.float32), values)
