"""Figures of the last NeuroPlastic step, from the sums in the optimizer's state."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


@torch.no_grad()
def diagnose(stepped: Iterable[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Join the sums of (elements of a parameter, its state). See `NeuroPlastic.diagnostics`."""
    sums, elements, skipped = list[Tensor](), 0, list[Tensor]()
    for numel, state in stepped:
        sums.append(state["sums"])
        elements += numel
        skipped += [state["skipped"]] if "skipped" in state else []
    if not sums:
        raise RuntimeError("diagnostics needs the sums that a step leaves: call it after step()")
    device = sums[0].device
    activity, gradient, memory, base, update = torch.stack([each.to(device, sums[0].dtype) for each in sums]).sum(0)
    report = {
        "alpha_rms": (update / base).sqrt(),
        "activity_mean": activity / elements,
        "gradient_mean": gradient / elements,
        "memory_mean": memory / elements,
        "base_norm": base.sqrt(),
    }
    if skipped:
        report["skipped"] = torch.stack([each.to(device) for each in skipped]).sum()
    return report
