"""The optimizers that train a model, as one: what is inside wrappers and lists, whether a step was taken, and by what scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ..config import DropInConfig
from ..sites import Site
from ..sites.engines import INSTEAD

# Where wrappers that are no torch optimizers keep what they wrap, such as accelerate's and DeepSpeed's.
INSIDE = ("optimizer", "optim", "base_optimizer", "_optimizer", "inner_optimizer")
FLAT = f"DeepSpeed's ZeRO and FSDP1 flatten parameters; {INSTEAD}"
COPIES = f"it holds copies in another precision, as DeepSpeed's bf16 and fp16 do; train in float32 or with autocast, {INSTEAD}"


class Optimizers:
    """All torch optimizers inside what `DropIn.step` was given: one, a wrapper of one, or a list of these.

    Attributes:
        given: the outermost objects. found: every torch optimizer that may hold state, the wrapping ones first.

    Raises:
        TypeError: an object that is no torch optimizer and wraps none.
    """

    def __init__(self, given: Any) -> None:
        self.given = [each for each in (given if isinstance(given, (list, tuple)) else [given]) if each is not None]
        self.found: list[Optimizer] = []
        for each in self.given:
            inside = list(_inside(each))
            if not inside:
                raise TypeError(
                    f"optimizer must be a torch.optim.Optimizer, wrap one, or be a list of these, got {type(each).__name__}"
                )
            self.found += [one for one in inside if not any(one is known for known in self.found)]
        self._held = {id(tensor) for one in self.found for group in one.param_groups for tensor in group["params"]}

    @property
    def innermost(self) -> list[Optimizer]:
        """Those that wrap none."""
        return [one for one in self.found if len(list(_inside(one))) == 1]

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of the tensors is held by an optimizer."""
        return any(id(each) in self._held for each in tensors)

    def train(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all tensors learn: none is frozen, and each is held by an optimizer, where any is given."""
        return all(each.requires_grad and (not self.found or id(each) in self._held) for each in tensors)

    def states(self, tensor: Tensor) -> Iterator[tuple[Optimizer, dict[str, Any]]]:
        """The optimizers that have state of a tensor, and the state."""
        for one in self.found:
            state = one.state.get(tensor)
            if state:
                yield one, state

    @property
    def skipped(self) -> bool:
        """Whether accelerate's loss scaling left out the last step."""
        return any(getattr(each, "step_was_skipped", False) for each in self.given)

    @property
    def accumulating(self) -> bool:
        """Whether accelerate is between the micro-batches of a step."""
        return any(not getattr(_gradient_state(each), "sync_gradients", True) for each in self.given)

    def loss_scale(self) -> Tensor | float:
        """What mixed precision multiplied the loss of the last step by, in tensors of the scaler's own.

        `GradScaler.update()` came after that step. A growth tracker of 0 after a step that was taken says that the scale grew.
        """
        scaler = next((each.scaler for each in self.given if getattr(each, "scaler", None) is not None), None)
        scale, tracker = getattr(scaler, "_scale", None), getattr(scaler, "_growth_tracker", None)
        if scaler is None or scale is None or tracker is None:
            return 1.0
        return torch.where(tracker == 0, scale / scaler.get_growth_factor(), scale)


def _inside(given: Any, depth: int = 0) -> Iterator[Optimizer]:
    """The torch optimizers in `given`; accelerate's wrappers pass the state of theirs through and are none themselves."""
    if isinstance(given, Optimizer) and _gradient_state(given) is None:
        yield given
    if depth == 5:
        return
    for name, held in vars(given).items() if hasattr(given, "__dict__") else ():
        for part in held if isinstance(held, (list, tuple)) else [held]:
            if isinstance(part, Optimizer) or name in INSIDE:
                yield from _inside(part, depth + 1)


def _gradient_state(given: Any) -> Any:
    return getattr(given, "gradient_state", None)


def checked_optimizers(given: Any, sites: Sequence[Site], config: DropInConfig) -> Optimizers:
    """The optimizers in `given`.

    Raises:
        TypeError: as `Optimizers`; one that keeps state in 8 bits, or an LBFGS, although neurons are to be changed.
        ValueError: they hold no weight of `sites`.
    """
    optimizers = Optimizers(given)
    if optimizers.found and not any(optimizers.hold(site.weights) for site in sites):
        tensors = [tensor for one in optimizers.found for group in one.param_groups for tensor in group["params"]]
        why = f": {FLAT}" if tensors and all(tensor.ndim == 1 for tensor in tensors) else ""
        weights = [(weight.shape, weight.dtype) for site in sites for weight in site.weights]
        if any(each.shape == shape and each.dtype != dtype for each in tensors for shape, dtype in weights):
            why = f": {COPIES}"
        raise ValueError(
            f"optimizer holds no parameter of the watched layers; pass the one that trains this model{why}"
        )
    bits = [group.get("state_bits") for one in optimizers.found for group in one.param_groups]
    if config.changes_neurons and 8 in bits:
        raise TypeError("8-bit optimizer state cannot be reset neuron by neuron: use NeuroPlastic(..., state_bits=32)")
    for one in optimizers.found if config.changes_neurons else ():
        if isinstance(one, torch.optim.LBFGS):
            raise TypeError(
                f"{type(one).__name__} keeps one state for all parameters, which cannot be reset neuron by neuron; use an "
                f"optimizer with state of the parameter's shape, such as NeuroPlastic or AdamW"
            )
    return optimizers


def agree(error: Exception | None) -> None:
    """Raises `error` on this rank, or on a rank without one a RuntimeError if another rank has one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        told: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(told, None if error is None else str(error))
        other = next((f"rank {rank}: {text}" for rank, text in enumerate(told) if text), None)
        if error is None and other is not None:
            raise RuntimeError(f"DropIn stops on every rank, because of {other}")
    if error is not None:
        raise error
