"""How the neurons of a detector fare on data: which are dead, weak and strong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from ..neurons.config import DropInConfig
from ..neurons.dropin import DropIn
from ..neurons.observe.health import DEAD, WEAK
from ..neurons.observe.hooks import Observer
from .evaluation import inputs_of, window_collator

STRONG = 4.0  # times the layer's mean contribution


def inspect_neurons(
    model: Any,
    feature_extractor: Any,
    rows: Dataset,
    seconds: float,
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> list[dict[str, Any]]:
    """A row for each layer that DropIn can watch: site, neurons, and how many are dead, weak and strong on the data.

    Dead: activity of at most 2.5 % of the layer's mean. Weak: contribution, |activity| x |gradient| of the cross entropy, of at
    most 10 % of the layer's mean. Strong: at least 4 times the mean. No weight changes, and no dropout or mask is drawn.

    Args:
        rows: with `audio` and `label`. seconds: length of the windows in the middle of the recordings.
        batch_size: windows at a time. progress: called as progress(done, windows).

    Raises:
        ValueError: no layer that DropIn knows.
    """
    collator = window_collator(feature_extractor, seconds, model=model)
    dropin = DropIn(model, DropInConfig(max_fraction=0.0))
    trained = {module: module.training for module in model.modules()}
    model.eval()
    for module in model.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(isinstance(hook, Observer) for hook in hooks):  # which observe neurons in training only
            module.training = True
    loader: Any = DataLoader(rows, batch_size=batch_size, collate_fn=collator)  # type: ignore[arg-type]
    done = 0
    try:
        for batch in loader:
            logits = model(**inputs_of(model, batch)).logits.float()
            nn.functional.cross_entropy(logits, batch["labels"].to(logits.device)).backward()
            dropin.step()
            model.zero_grad()
            done += len(batch["labels"])
            if progress is not None:
                progress(done, len(rows))
        return [_row(known.site.name, known.statistics) for known in dropin.watched]
    finally:
        dropin.unpatch()
        for module, training in trained.items():
            module.training = training


def _row(name: str, statistics: Any) -> dict[str, Any]:
    held = statistics.active & (statistics.weight > 0)
    activity, contribution = statistics.activity[held], statistics.contribution[held]
    share = contribution / contribution.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return {
        "site": name,
        "neurons": int(held.sum()),
        "dead": int((activity <= DEAD * activity.mean()).sum()),
        "weak": int((share <= WEAK).sum()),
        "strong": int((share >= STRONG).sum()),
    }
