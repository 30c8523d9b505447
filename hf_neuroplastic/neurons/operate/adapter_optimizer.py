"""An optimizer over new neurons alone: state only for what learns, and nothing old can move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .adapter_base import AdapterBase, adaptable_sites, tensors_of


class Share(NamedTuple):
    """The new neurons' entries of a parameter, and the tensor that the optimizer steps in their place."""

    parameter: nn.Parameter
    dim: int
    slots: Tensor  # [K] int64
    stepped: nn.Parameter

    def follow(self) -> None:
        """Goes to the parameter's device, where a model was moved."""
        if self.stepped.device != self.parameter.device:
            self.stepped.data = self.stepped.data.to(self.parameter.device)

    def of(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(self.dim, self.slots.to(tensor.device))


def new_neuron_optimizer(
    model: nn.Module, base: AdapterBase, optimizer_class: Callable[..., Optimizer], **options: Any
) -> Optimizer:
    """`optimizer_class` over the neurons that `model` has beyond `base`, and over the modules that learn whole.

        base = only_new_neurons(model)
        grow(model, 64)
        optimizer = new_neuron_optimizer(model, base, torch.optim.AdamW, lr=1e-3, weight_decay=0.01)
        Trainer(model, args, ..., optimizers=(optimizer, None)).train()
        save_neurons(model, "adapter", base)

    The optimizer's parameters are copies of the new neurons' weights, [K, D], [K] and [D, K] for a Linear's; before each step
    they get values and gradients from the model's parameters, and after the step the model gets the values. So optimizer state
    is that of the new neurons, and no optimizer, decay or not, moves anything else. Gradients are those of whole parameters
    until the step, which sets them to None: a plain model's parameter has a gradient of its own shape.

    This takes the place of DropIn and its callback, which want an optimizer over the model's own parameters. Clipping,
    accumulation and schedulers see the model's gradients and the optimizer's groups as ever. Not with torch.amp.GradScaler
    (fp16), which looks for gradients in the optimizer before the step: its own AssertionError says that there are none.

    Args:
        base: of `only_new_neurons`. model: with neurons grown after it.
        optimizer_class: any of torch's manner, with its `options`; one that calls a closure is refused at its step.

    Raises:
        ValueError: no neuron grew; or `base` is of another model.
    """
    held, shares = tensors_of(model), list[Share]()
    for name, site in adaptable_sites(model).items():
        if name not in base.widths or site.width < base.widths[name]:
            raise ValueError(f"base knows no site {name!r} of this width; take the base of this model before it grows")
        new = torch.ones(site.width, dtype=torch.bool)
        new[base.neurons(name)] = False
        slots = new.nonzero().flatten()
        for part in site.slices if len(slots) else ():
            if isinstance(part.tensor, nn.Parameter) and part.tensor.requires_grad:
                stepped = nn.Parameter(part.tensor.detach().index_select(part.dim, slots.to(part.tensor.device)))
                shares.append(Share(part.tensor, part.dim, slots, stepped))
    if not shares:
        raise ValueError(
            f"{type(model).__name__} has no neuron beyond its base that learns: call only_new_neurons(model), and then "
            f"grow(model, n), before the optimizer is made"
        )
    whole = [held[name] for name in base.tensors if isinstance(held[name], nn.Parameter) and held[name].requires_grad]
    optimizer = optimizer_class([*(share.stepped for share in shares), *whole], **options)

    @torch.no_grad()
    def take(_: Optimizer, args: Any, given: Any) -> None:
        if any(each is not None for each in (*args[1:2], given.get("closure"))):
            raise ValueError(
                "new_neuron_optimizer steps by gradients that are there: an optimizer with a closure cannot be used"
            )
        for share in shares:
            share.follow()
            share.stepped.copy_(share.of(share.parameter))
            gradient = share.parameter.grad
            share.stepped.grad = None if gradient is None else share.of(gradient)

    @torch.no_grad()
    def give(*_: Any) -> None:
        for share in shares:
            if share.parameter.grad is not None:
                share.parameter.index_copy_(share.dim, share.slots.to(share.parameter.device), share.stepped)
            share.parameter.grad = share.stepped.grad = None

    def follow(*_: Any) -> None:
        for share in shares:
            share.follow()  # state is loaded to where the stepped tensors are

    clear = optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        clear(set_to_none)
        for share in shares:  # gradients are the whole parameters'
            if share.parameter.grad is not None and not set_to_none:
                share.parameter.grad.zero_()
            elif set_to_none:
                share.parameter.grad = None

    optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
    optimizer.register_step_pre_hook(take)
    optimizer.register_step_post_hook(give)
    optimizer.register_load_state_dict_pre_hook(follow)
    return optimizer
