"""What lies between the tensors of a step as they are kept and the formulas: shards, half precision, 8-bit state.

Before the formulas a gradient is multiplied by its factor, and half precision and 8-bit codes are widened to float32; after
them parameters and state are narrowed again. Random numbers are Philox words with the counter (element, step, 0, tensor): the
first rounds p, the others m, v and a.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..common.philox import philox
from . import eight_bit


def state_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's state and of its arithmetic."""
    return torch.float32 if param.dtype in (torch.float16, torch.bfloat16) else param.dtype


def is_flat(tensor: Tensor) -> bool:
    """Whether a tensor is one run of memory of this process: contiguous, no subclass such as a sharded DTensor, and its numbers
    as they lie there."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()
    return is_plain and tensor.is_contiguous() and (tensor.data_ptr() != 0 or tensor.numel() == 0)


def local(tensor: Any) -> Tensor:
    """This process's shard of a DTensor; other tensors as they are."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def sum_over_shards(sums: Tensor, whole: Any) -> Tensor:
    """`sums` of this process's shard of `whole`, added up in place over the processes that hold the other shards."""
    if hasattr(whole, "device_mesh"):
        for dim, placement in enumerate(whole.placements):
            if not placement.is_replicate():
                dist.all_reduce(sums, group=whole.device_mesh.get_group(dim))
    return sums


def widened(
    param: Tensor, grad: Any, state: dict[str, Tensor], factor: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """p, g and the state in the dtype of the arithmetic: the tensors themselves where they are of this dtype already."""
    dtype = state_dtype(param)
    if hasattr(param, "placements") and hasattr(grad, "placements") and param.placements != grad.placements:
        grad = grad.redistribute(placements=param.placements)
    g = local(grad).to(dtype)
    if factor is not None:
        g = g * factor.to(g.device, dtype)
    values = {name: local(value) for name, value in state.items()}
    return local(param).to(dtype), g, values | eight_bit.decoded(state)


def narrow(
    param: Tensor,
    state: dict[str, Tensor],
    p: Tensor,
    values: dict[str, Tensor],
    number: int,
    seed: int,
    stochastic_rounding: bool,
) -> None:
    """Puts p and the new state where they are kept, rounded."""
    rounds = stochastic_rounding and param.dtype == torch.bfloat16
    if rounds or "scales" in state:
        index = element_numbers(param, p)
        words = philox(seed, index, state["step"].to(p.device, torch.int64), 0, number)
        p = rounded_to_bfloat16(p.contiguous(), words[0]) if rounds else p
        eight_bit.store(state, values, words[1:])
    if p.dtype != param.dtype:
        local(param).copy_(p)


def element_numbers(whole: Any, p: Tensor) -> Tensor:
    """Of the elements of p, `whole` itself or this process's shard of it, within the whole: the same however it is split."""
    if not hasattr(whole, "device_mesh"):
        return torch.arange(p.numel(), device=p.device).view(p.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, starts = compute_local_shape_and_global_offset(whole.shape, whole.device_mesh, whole.placements)
    index = torch.zeros((), dtype=torch.int64, device=p.device)
    for size, start, full in zip(p.shape, starts, whole.shape, strict=True):
        index = (index * full).unsqueeze(-1) + torch.arange(start, start + size, device=p.device)
    return index.view(p.shape)


def rounded_to_bfloat16(values: Tensor, word: Tensor) -> Tensor:
    """float32 values without their lower 16 bits, rounded up with the probability these stand for. word: random bits."""
    bits = values.view(torch.int32) + (word & 0xFFFF).to(torch.int32)
    return torch.where(values.isfinite(), (bits & -65536).view(torch.float32), values)
