"""GRU layers: every hidden unit of the last layer is a neuron.

Modules do not show where an output goes, so the user names the Linear that takes the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .requirements import require_kind
from .site import Ability, Fold, IncomingSlices, NeuronSlice, Site

GATES = 3  # reset, update, new: in this order in every weight of torch.nn.GRU


@dataclass(frozen=True, eq=False)
class RecurrentSite(Site):
    """A GRU (`up`) and the Linear that takes its output (`down`).

    Neuron i is rows i, H + i and 2H + i of the last layer's weights and biases, column i of its hidden-to-hidden weight, and
    column i of `down.weight`. A new one neither hears the hidden state nor speaks to it: these rows and columns are 0. The
    unit's mean output goes into `down.bias` and the hidden-to-hidden bias.
    """

    @property
    def watched(self) -> nn.Module:
        return self.up

    @property
    def width(self) -> int:
        return self.up.hidden_size

    @property
    def inputs(self) -> int:
        return self._last("weight_ih").shape[1]

    @property
    def incoming(self) -> tuple[IncomingSlices, ...]:
        biases = self._gates("bias_ih") if self.up.bias else (None,) * GATES
        return tuple(
            IncomingSlices(weight, bias) for weight, bias in zip(self._gates("weight_ih"), biases, strict=True)
        )

    @property
    def outgoing(self) -> tuple[NeuronSlice, ...]:
        return (NeuronSlice(self.down.weight, 1), NeuronSlice(self._last("weight_hh"), 1))

    @property
    def others(self) -> tuple[NeuronSlice, ...]:
        return (*self._gates("weight_hh"), *(self._gates("bias_hh") if self.up.bias else ()))

    @property
    def folds(self) -> tuple[Fold, ...]:
        return (Fold(self._last("weight_hh"), self._last("bias_hh")),) if self.up.bias else ()

    def declare_width(self, width: int) -> None:
        raise NotImplementedError("the width of a GRU does not change")

    def refusal(self, ability: Ability) -> str | None:
        return "its neurons are units of a GRU, which can only be replaced"

    def _last(self, name: str) -> Tensor:
        return getattr(self.up, f"{name}_l{self.up.num_layers - 1}")

    def _gates(self, name: str) -> tuple[NeuronSlice, ...]:
        return tuple(NeuronSlice(self._last(name), block=gate, blocks=GATES) for gate in range(GATES))


def recurrent_site(model: nn.Module, path: str, consumer: str) -> RecurrentSite:
    """The site of the GRU at `path`, whose output goes to the Linear at `consumer`.

    Raises:
        ValueError: no such path, a bidirectional GRU, or a Linear of another width.
        TypeError: the modules are no plain torch.nn.GRU and torch.nn.Linear.
    """
    gru, linear = (_module_at(model, name) for name in (path, consumer))
    if type(gru) is not nn.GRU:
        raise TypeError(
            f"recurrent names {path!r}, which must be a torch.nn.GRU, got {type(gru).__name__}; leave it out (the units of an "
            f"LSTM have a second state, which DropIn does not know)"
        )
    if gru.bidirectional:
        raise ValueError(
            f"recurrent names {path!r}, a bidirectional GRU, whose output joins the units of two directions; use "
            f"bidirectional=False or leave it out"
        )
    require_kind(consumer, "consumer", linear, (nn.Linear,))
    if linear.in_features != gru.hidden_size:
        raise ValueError(
            f"recurrent says that {consumer!r} takes the output of {path!r}, but it has in_features={linear.in_features} and "
            f"the GRU hidden_size={gru.hidden_size}; name the Linear that takes the GRU's output as it is"
        )
    return RecurrentSite(path, gru, gru, linear)


def checked_recurrent(model: nn.Module, recurrent: Mapping[str, str] | None) -> dict[str, RecurrentSite]:
    """The sites that DropInConfig.recurrent names, by the paths of their GRUs."""
    return {path: recurrent_site(model, path, consumer) for path, consumer in (recurrent or {}).items()}


def _module_at(model: nn.Module, path: str) -> Any:
    modules = dict(model.named_modules())
    if path not in modules:
        available = [name for name, module in modules.items() if isinstance(module, (nn.GRU, nn.Linear))]
        raise ValueError(f"recurrent names {path!r}, but the model has no such module; GRUs and Linears: {available}")
    return modules[path]
