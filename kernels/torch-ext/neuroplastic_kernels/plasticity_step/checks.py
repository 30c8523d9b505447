"""What `plasticity_step` asks of its tensors, whatever the form that runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq", "trace")  # state of the parameter's shape
ALWAYS = {"step", "exp_avg", "exp_avg_sq", "sums"}


def check_lists(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[Mapping[str, Tensor]],
    neuron_factors: Sequence[Any] | None = None,
) -> None:
    """Refuses what no form takes; see `reference.plasticity_step` for what is raised."""
    lists = [params, grads, states, *([] if neuron_factors is None else [neuron_factors])]
    if len(set(map(len, lists))) > 1:
        raise ValueError(
            f"the lists of tensors must be of one length, got {', '.join(str(len(each)) for each in lists)}"
        )
    for index, (param, grad, state) in enumerate(zip(params, grads, states, strict=True)):
        lacking = sorted(ALWAYS - state.keys()) if state or grad is not None else []
        if lacking:
            raise RuntimeError(
                f"the state of parameter {index} lacks {', '.join(lacking)}: a step cannot go on from it"
            )
        if grad is not None and grad.layout is not torch.strided:
            raise RuntimeError(
                f"NeuroPlastic does not take {grad.layout} gradients, got one of shape {tuple(grad.shape)}; use dense "
                "gradients, as nn.Embedding(sparse=False) has"
            )
        held = [state[name] for name in MOMENTS if name in state]
        for tensor in held if grad is None else (grad, *held):
            if tensor.shape != param.shape:
                raise RuntimeError(
                    f"parameter {index} has shape {tuple(param.shape)} but its gradient or state another, such as "
                    f"{tuple(tensor.shape)}: change widths before the first step, or pass the optimizer to reserve or compact"
                )
    for index, factor in enumerate(neuron_factors or ()):
        if factor is not None:
            check_factor(params[index], factor, index)


def check_factor(param: Tensor, factor: Any, index: int) -> None:
    """Raises ValueError where the neuron factors of parameter number `index` do not fit."""
    where, (values, dim) = f"neuron_factors of parameter {index}, of shape {tuple(param.shape)},", factor
    if isinstance(dim, bool) or not isinstance(dim, int) or not -param.ndim <= dim < param.ndim:
        raise ValueError(
            f"{where} must name the dimension that counts its neurons: dim from {-param.ndim} to {param.ndim - 1}; got {dim!r}"
        )
    wanted, got = f"a contiguous float32 tensor of shape {(param.shape[dim],)} on {param.device}", type(values).__name__
    if isinstance(values, Tensor):
        layout = "" if values.is_contiguous() else "non-contiguous "
        got = f"{layout}{values.dtype} of shape {tuple(values.shape)} on {values.device}"
    if got != f"torch.float32 of shape {(param.shape[dim],)} on {param.device}":
        raise ValueError(f"values in {where} must be {wanted}; got {got}")
