"""The state of NeuroPlastic: initial state, and saved state of any precision brought into the optimizer's own."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from neuroplastic_kernels import SUMS, eight_bit, is_flat, state_dtype

from .options import check_options

logger = logging.getLogger(__name__)
ADAMW = ("step", "exp_avg", "exp_avg_sq")
AT_LEAST_ZERO = ("exp_avg_sq", "trace", "scales")
ADAM_S_OWN = frozenset(
    {"amsgrad", "foreach", "capturable", "differentiable", "fused"}
)  # options of torch's Adam and AdamW


def takes_eight_bits(param: Tensor, state_bits: int) -> bool:
    """Whether a parameter's state is kept as codes, which its dtype and shape decide, however it is split."""
    is_large = param.numel() >= eight_bit.SMALLEST and eight_bit.has_blocks_in_rows(param.shape)
    return state_bits == 8 and is_large and param.dtype != torch.float64 and is_flat(own_part(param))


def initial_state(param: Tensor, group: dict[str, Any], counter: torch.device) -> dict[str, Tensor]:
    """The state before the first step, as `plasticity_step` takes it; step counters lie on the device `counter`."""
    names = [name for name in eight_bit.CODES if name != "trace" or group["activity"] == "trace"]
    coded, wide = takes_eight_bits(param, group["state_bits"]), state_dtype(param)
    counters = ("step", "skipped") if group["skip_nonfinite"] else ("step",)
    state = {name: torch.zeros((), dtype=torch.float32, device=counter) for name in counters}
    state |= {name: torch.zeros_like(param, dtype=eight_bit.CODES[name].dtype if coded else wide) for name in names}
    if coded:
        state["scales"] = initial_scales(param, len(names))
    return state | {"sums": torch.zeros(SUMS, dtype=wide, device=param.device)}


def initial_scales(param: Any, streams: int) -> Tensor:
    """Scales of 0, split over processes as the rows of the parameter."""
    like = own_part(param)
    scales = torch.zeros(eight_bit.scales_shape(like.shape, streams), dtype=torch.float32, device=like.device)
    if like is param:
        return scales
    from torch.distributed.tensor import DTensor

    placements = [each if each.is_replicate() else of_rows(each) for each in param.placements]
    shape = torch.Size(eight_bit.scales_shape(param.shape, streams))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(scales, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def of_rows(placement: Any) -> Any:
    """A parameter's split into rows as that of the scales, whose second dimension counts rows."""
    factor = getattr(placement, "split_factor", None)
    return type(placement)(1) if factor is None else type(placement)(1, split_factor=factor)


def refuse_cut_blocks(params: Sequence[Any], group: int) -> None:
    """Raise ValueError where 8-bit state would be for columns of a tensor; name a large matrix that has no blocks."""
    for index, param in enumerate(params):
        split = [each.dim for each in getattr(param, "placements", ()) if not each.is_replicate()]
        if takes_eight_bits(param, 8) and any(split):
            raise ValueError(
                f"state_bits=8 keeps a scale for blocks within rows, but parameter {index} of group {group}, of shape "
                f"{tuple(param.shape)}, is sharded along dimension {max(split)}; shard its first dimension, or put the "
                "parameter into a group with state_bits=32"
            )
    odd = [
        p
        for p in params
        if p.ndim > 1 and p.numel() >= eight_bit.SMALLEST and not eight_bit.has_blocks_in_rows(p.shape)
    ]
    if odd:
        logger.warning(
            "state_bits=8: %d matrices of group %d, such as one of shape %s, keep 32 bits: 8-bit state needs a multiple of %d "
            "elements for each index of the first dimension",
            len(odd),
            group,
            tuple(odd[0].shape),
            eight_bit.ROW,
        )


def fits(state: dict[str, Tensor], group: dict[str, Any]) -> bool:
    """Whether a state holds the tensors that the group's options ask for, which may change between steps."""
    return ("trace" in state) == (group["activity"] == "trace") and ("skipped" in state or not group["skip_nonfinite"])


def matched_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Pairs of a parameter and its saved state, checked; without sums that Adam carried along, of a step before its own."""
    saved = ((key, "amsgrad" in group) for group in state_dict["param_groups"] for key in group["params"])
    params = (param for group in optimizer.param_groups for param in group["params"])
    for (key, of_adam), param in zip(saved, params, strict=False):  # torch reports unequal lengths
        entry = state_dict["state"].get(key)
        if entry:
            check_entry(key, param, entry)
            check_values(key, entry)
            yield param, {name: value for name, value in entry.items() if not (of_adam and name == "sums")}


def check_entry(key: Any, param: Tensor, entry: dict[str, Any]) -> None:
    """Raises ValueError where the saved state of one parameter is not for NeuroPlastic, or not for this parameter."""
    missing = [name for name in ADAMW if name not in entry]
    if missing:
        raise ValueError(
            f"state of parameter {key} lacks {', '.join(missing)}: it holds {', '.join(map(str, entry))}; NeuroPlastic "
            "loads its own state or that of torch's Adam and AdamW"
        )
    if "max_exp_avg_sq" in entry:
        raise ValueError(
            f"state of parameter {key} holds max_exp_avg_sq: it was saved with amsgrad=True, for which NeuroPlastic has no "
            "place; take these entries out of the state to go on without them"
        )
    if "trace" in entry and "sums" not in entry:
        raise ValueError(
            f"state of parameter {key} holds a trace but no sums: it was saved by a NeuroPlastic of three passes, before "
            "0.1.0; go on from that checkpoint's weights with a new optimizer"
        )
    names = eight_bit.names(entry)
    shapes = dict.fromkeys(names, tuple(param.shape)) | {"sums": (SUMS,)}
    shapes["scales"] = eight_bit.scales_shape(param.shape, len(names))
    for name, shape in shapes.items():
        if name in entry and tuple(entry[name].shape) != shape:
            raise ValueError(
                f"{name} of parameter {key} has shape {tuple(entry[name].shape)} where {shape} is needed; build the optimizer "
                "over the model the state was saved with"
            )


def check_values(key: Any, entry: dict[str, Any]) -> None:
    """Raises ValueError where the saved state of one parameter holds numbers that no training leaves."""
    for name in ("step", "skipped", "exp_avg", *AT_LEAST_ZERO):
        value = torch.as_tensor(entry.get(name, 0.0))
        if not value.is_floating_point():
            continue  # codes of 8 bits, of which every one means a number
        bad = ~torch.isfinite(value) | ((value < 0) if name != "exp_avg" else torch.zeros_like(value, dtype=torch.bool))
        if bad.any():
            raise ValueError(
                f"{name} of parameter {key} holds {int(bad.sum())} values that are infinite, NaN or below 0: the file is "
                "damaged, or the training had diverged; go on from an earlier checkpoint, or with a new optimizer"
            )
    if _are_codes(entry):
        raise ValueError(
            f"state of parameter {key} holds whole numbers from 0 to 255 for exp_avg_sq: these are codes that were saved with "
            "state_bits=8 and read as numbers, as torch.distributed.checkpoint does; load them into "
            "NeuroPlastic(..., state_bits=8), or go on with a new optimizer"
        )


def _are_codes(entry: dict[str, Any]) -> bool:
    """Whether moments are floats that look like 8-bit codes, which no mean of gradients does."""
    moments = [torch.as_tensor(entry[name]) for name in ("exp_avg", "exp_avg_sq")]
    if not all(each.is_floating_point() for each in moments) or moments[0].numel() < eight_bit.SMALLEST:
        return False
    whole = all(bool((each == each.round()).all()) for each in moments)
    return whole and bool((moments[1] <= 255).all()) and bool((moments[1] > 1).any())


def completed_groups(optimizer: Optimizer, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, checked; options they do not set, and `state_bits`, stay as the optimizer's groups have them."""
    completed = []
    for index, (own, group) in enumerate(zip(optimizer.param_groups, saved, strict=False)):
        options = {**own, **group, "state_bits": own["state_bits"]}
        others = {name: value for name, value in group.items() if name not in ADAM_S_OWN}
        completed.append({**others, **check_options(options, f"group {index} of the state to load")})
    return completed + saved[len(completed) :]


def restored(param: Tensor, entry: dict[str, Any], group: dict[str, Any], counter: torch.device) -> dict[str, Tensor]:
    """The state of one parameter from its saved form, whose moments may be floats or codes.

    What the saved form lacks begins anew: sums of 0, no history, make the next step the base's own.
    """
    state = initial_state(param, group, counter)
    names, coded = eight_bit.names(state), "scales" in state
    as_is = coded == ("scales" in entry) and (not coded or names == eight_bit.names(entry))
    values = entry if as_is else {**entry, **eight_bit.decoded(own_parts(entry))}
    copied = {"step", "skipped", "sums", *(() if coded and not as_is else (*names, "scales"))}
    for name in copied & state.keys() & values.keys():
        target = state[name] if as_is else own_part(state[name])
        target.copy_(torch.as_tensor(values[name] if as_is else own_part(values[name])))
    if coded and not as_is:
        part = own_part(param)
        moments = {
            name: own_part(values.get(name, torch.zeros(()))).to(part.device).expand(part.shape) for name in names
        }
        eight_bit.store(own_parts(state), {name: each.float() for name, each in moments.items()})
    return state


def own_part(value: Any) -> Any:
    """What this process holds of a sharded tensor; whole tensors and numbers as they are."""
    return getattr(value, "_local_tensor", value)


def own_parts(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: own_part(value) for name, value in entry.items()}
