"""The table of tensors that native.cpp steps, kept from step to step while they stay where they are.

With a tensor it keeps the sum of its trace that the last step left. That is true while the trace is the same tensor and
torch counts no write to it but that step's; otherwise the trace is added up anew, which gives the same bits for the same
values. What torch does not count, such as writes through `.data`, makes one step's mean that of before.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.tensor_places import tensor_places
from .formulas import NeuronFactor
from .lists import check_lists, whereabouts
from .reference import is_flat
from .write_counts import WriteCounts

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class TensorRecord(ctypes.Structure):
    """`Tensor` of native_passes.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("param", "grad", "trace", "exp_avg", "exp_avg_sq")),
        *((name, ctypes.c_int64) for name in ("numel", "dtype")),
        *((name, ctypes.c_double) for name in ("blend", "correction", "gain")),
        ("factors", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("neurons", "stride")),
        ("trace_sum", ctypes.c_double),
    )


def takes(param: Tensor, grad: Tensor, *state: Tensor) -> bool:
    """Whether the compiled form takes a tensor: all flat and on the CPU, the gradient of the parameter's dtype, the
    state float64 for float64 and float32 for the others."""
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    streams = (param, grad, *state)
    return (
        param.dtype in DTYPES
        and [stream.dtype for stream in streams] == [param.dtype, param.dtype, wide, wide, wide]
        and all([stream.is_cpu for stream in streams])
        and all(map(is_flat, streams))
        and len(set(map(Tensor.numel, streams))) == 1
    )


def tensor_record(param: Tensor, state: Sequence[Tensor], neurons: NeuronFactor | None) -> TensorRecord:
    """One tensor of `takes`, but for its gradient and moment. state: a, m and v."""
    record = TensorRecord(param.data_ptr(), None, *map(Tensor.data_ptr, state), param.numel(), DTYPES[param.dtype])
    record.trace_sum = math.nan
    if neurons is not None:
        record.factors, record.neurons = neurons.values.data_ptr(), neurons.values.numel()
        record.stride = math.prod(param.shape[neurons.dim % param.ndim + 1 :])
    return record


class TensorTable:
    """Those of a step's tensors that the compiled form takes, whether or not they have a gradient this time."""

    def __init__(
        self,
        key: Any,
        lists: Sequence[Sequence[Tensor]],
        neurons: Sequence[NeuronFactor | None],
        left_out: Sequence[bool],
    ) -> None:
        """key: `whereabouts`. lists: p, a, m and v of each tensor. left_out: what not to take although it could be."""
        rows = list(zip(*lists, strict=True))
        self.key, self.left_out, self.counts = key, left_out, WriteCounts()
        self.members = [i for i, (p, *state) in enumerate(rows) if not left_out[i] and takes(p, p, *state)]
        found = [tensor_record(rows[i][0], rows[i][1:], neurons[i]) for i in self.members]
        self.array = (TensorRecord * len(found))(*found)
        self.records = list(self.array)  # of the array's memory
        self.gradients: Any = None  # the places of those that the records name
        self.stepped: list[int] = []  # the members that have such a gradient
        self.active: list[TensorRecord] = []  # their records

    def take_gradients(self, places: Any, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Name the gradients in the records, but those that the compiled form does not take. places: theirs."""
        self.gradients, self.stepped, self.active = places, [], []
        for index, record in zip(self.members, self.records, strict=True):
            param, grad, record.grad = params[index], grads[index], None
            if grad is not None and grad.dtype == param.dtype and grad.is_cpu and is_flat(grad):
                record.grad = grad.data_ptr()
                self.stepped.append(index)
                self.active.append(record)

    def forget_written_sums(self, traces: Sequence[Tensor]) -> None:
        """Give up the sums of traces that something else has written since `remember_sums`."""
        for record, unwritten in zip(self.records, self.counts.unwritten(self._mine(traces)), strict=True):
            if not unwritten:
                record.trace_sum = math.nan

    def remember_sums(self, traces: Sequence[Tensor]) -> None:
        """The sums in the records are those of the traces as they are now."""
        self.counts.remember(self._mine(traces))

    def _mine(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[index] for index in self.members]


def table_for(
    workspace: dict[Any, Any],
    grads: Sequence[Tensor | None],
    lists: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    neurons: Sequence[NeuronFactor | None],
    left_out: Sequence[bool],
) -> TensorTable:
    """The table that `workspace` holds for these tensors, or a new one, its records naming these gradients.

    lists: p, a, m and v of each tensor. Raises as `check_lists` does, which is asked when something has moved.
    """
    key, places = whereabouts((*lists, steps), neurons), tensor_places([*grads])
    held: TensorTable | None = workspace.get("table")
    if held is not None and (held.key, held.left_out) != (key, left_out):
        held = None
    if held is None or held.gradients != places:
        check_lists(lists[0], grads, lists[1:], steps, neurons)
        if held is None:
            held = workspace["table"] = TensorTable(key, lists, neurons, left_out)
        held.take_gradients(places, lists[0], grads)
    return held
