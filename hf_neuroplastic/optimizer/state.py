"""How NeuroPlastic keeps its state: what it begins as, and how saved state of any precision is taken over."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from neuroplastic_kernels import eight_bit, is_flat

from .options import STORAGE, check_options

STATE = tuple(eight_bit.CODES)


def state_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's state and of its arithmetic."""
    return torch.float32 if param.dtype in (torch.float16, torch.bfloat16) else param.dtype


def matched_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Pairs of a parameter and its saved state, checked."""
    identifiers = (key for group in state_dict["param_groups"] for key in group["params"])
    params = (param for group in optimizer.param_groups for param in group["params"])
    for key, param in zip(identifiers, params, strict=False):  # torch reports unequal lengths
        entry = state_dict["state"].get(key)
        if not entry:
            continue
        missing = [name for name in ("step", "exp_avg", "exp_avg_sq") if name not in entry]
        if missing:
            raise ValueError(
                f"state of parameter {key} lacks {', '.join(missing)}: it holds {', '.join(map(str, entry))}; NeuroPlastic "
                "loads its own state or that of torch's Adam and AdamW"
            )
        for name in STATE:
            if name in entry and entry[name].shape != param.shape:
                raise ValueError(
                    f"{name} of parameter {key} has shape {tuple(entry[name].shape)}, the parameter {tuple(param.shape)}; "
                    "build the optimizer over the model the state was saved with"
                )
        needed = (len(STATE), eight_bit.blocks(param.numel()))
        held = tuple(entry["scales"].shape) if "scales" in entry else needed
        if held != needed:
            raise ValueError(
                f"scales of parameter {key} have shape {held}, its 8-bit state needs {needed}; load a state saved by this "
                "version"
            )
        yield param, entry


def completed_groups(optimizer: Optimizer, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, checked; what they do not set, and how state is kept, stays as the optimizer's groups have it."""
    completed = []
    for index, (own, group) in enumerate(zip(optimizer.param_groups, saved, strict=False)):
        storage = {name: own[name] for name in STORAGE}
        options = check_options({**own, **group, **storage}, f"group {index} of the state to load")
        completed.append({**group, **options})
    return completed + saved[len(completed) :]


def takes_eight_bits(param: Tensor, state_bits: int) -> bool:
    """Whether a parameter's state is kept as codes."""
    return state_bits == 8 and param.numel() >= eight_bit.SMALLEST and param.dtype != torch.float64 and is_flat(param)


def initial_state(param: Tensor, state_bits: int, counter: torch.device) -> dict[str, Tensor]:
    """The state before the first step; the step counter lies on the device `counter`."""
    state = {"step": torch.zeros((), dtype=torch.float32, device=counter)}
    if takes_eight_bits(param, state_bits):
        state |= {name: torch.zeros_like(param, dtype=code.dtype) for name, code in eight_bit.CODES.items()}
        return {
            **state,
            "scales": torch.zeros(len(eight_bit.CODES), eight_bit.blocks(param.numel()), device=param.device),
        }
    return {**state, **{name: torch.zeros_like(param, dtype=state_dtype(param)) for name in STATE}}


def decoded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with its moments as floats."""
    if "scales" not in state:
        return state
    values = eight_bit.dequantise([state[name] for name in STATE], state["scales"])
    return {"step": state["step"], **dict(zip(STATE, values, strict=True))}


def restored(param: Tensor, entry: dict[str, Any], state_bits: int, counter: torch.device) -> dict[str, Tensor]:
    """The state of one parameter from its saved form, whose moments may be floats or codes."""
    state = initial_state(param, state_bits, counter)
    state["step"] = torch.as_tensor(entry["step"], dtype=torch.float32).to(counter, copy=True)
    if "scales" in entry and "scales" in state:
        return {**state, **{name: entry[name].to(param.device) for name in (*STATE, "scales")}}
    floats = decoded(entry)
    moments = {name: floats[name].to(param.device, state_dtype(param)) for name in STATE if name in floats}
    if "scales" not in state:
        return {**state, **moments}
    zeros = torch.zeros_like(param, dtype=torch.float32)
    codes, scales = eight_bit.quantise([moments.get(name, zeros) for name in STATE])
    return {**state, **dict(zip(STATE, codes, strict=True)), "scales": scales}
