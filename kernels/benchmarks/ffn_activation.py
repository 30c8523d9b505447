"""A watched feed-forward layer beside the stock one: the layer's inner part, and a whole training step of wav2vec2."""

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plasticity_step import peak_memory, timed
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from hf_neuroplastic import DropIn
from neuroplastic_kernels import ffn_activation
from neuroplastic_kernels.ffn_activation.neuron_sums import ROWS

WIDTH, NEURONS, DROPOUT = 768, 3072, 0.1
RATE = 16_000
WARMUP = 3


def inner_forms(device: str, dtype: torch.dtype, quick: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> x [tokens, WIDTH] to the layer's neurons [tokens, NEURONS]. The first is the one ratios refer to."""
    up = nn.Linear(WIDTH, NEURONS).to(device, dtype)
    neuron_sums = torch.zeros(ROWS, NEURONS, device=device)
    probe = torch.zeros_like(neuron_sums, requires_grad=True)  # gets the neuron_sums as its gradient in compiled forms

    def stock(x: Tensor) -> Tensor:
        return F.dropout(F.gelu(up(x)), DROPOUT)

    def hooks(x: Tensor) -> Tensor:
        z = F.gelu(up(x))
        z.register_hook(adds_sums_of(z, neuron_sums))
        return F.dropout(z, DROPOUT)

    def ours(backend: str, neuron_sums: Tensor = neuron_sums) -> Callable[[Tensor], Tensor]:
        def form(x: Tensor) -> Tensor:
            h = F.linear(x, up.weight)
            return ffn_activation(h, up.bias, neuron_sums, dropout=DROPOUT, backend=backend)

        return form

    forms = {"stock": stock, "stock with hooks": hooks, "reference": ours("reference")}
    if device == "cuda":
        forms["fused"] = ours("fused")
    if not quick:
        forms["stock, compiled"] = torch.compile(stock)
        forms["reference, compiled"] = torch.compile(ours("reference", probe), fullgraph=True)
        if device == "cuda":
            forms["fused, compiled"] = torch.compile(ours("fused", probe), fullgraph=True)
    return forms


def adds_sums_of(z: Tensor, neuron_sums: Tensor) -> Callable[[Tensor], None]:
    """What a tensor hook on z [..., N] would do to know as much: the anchor for the cost of watching."""

    def add(dz: Tensor) -> None:
        a, d = (x.detach().reshape(-1, x.shape[-1]).float() for x in (z, dz))
        neuron_sums.add_(torch.stack([x.sum(0) for x in (a.abs(), d.abs(), a, torch.ones_like(a))]))

    return add


def inner_actions(device: str, quick: bool) -> dict[str, Callable[[], Any]]:
    """Forward and backward pass of each form."""
    dtype, tokens = (torch.bfloat16, 16_384) if device == "cuda" else (torch.float32, 800)
    x = torch.randn(tokens, WIDTH, device=device, dtype=dtype, requires_grad=True)
    upstream = torch.randn(tokens, NEURONS, device=device, dtype=dtype)

    def action(form: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: form(x).backward(upstream)

    return {name: action(form) for name, form in inner_forms(device, dtype, quick).items()}


def hook_activations(model: nn.Module, device: str) -> None:
    """Lets plain hooks take the neuron_sums of every feed-forward layer."""
    for module in model.modules():
        if hasattr(module, "intermediate_act_fn"):
            neuron_sums = torch.zeros(ROWS, NEURONS, device=device)

            def hook(module: nn.Module, args: Any, z: Tensor, neuron_sums: Tensor = neuron_sums) -> None:
                z.register_hook(adds_sums_of(z, neuron_sums))

            module.intermediate_act_fn.register_forward_hook(hook)


def training_step(
    model: nn.Module, device: str, seconds: int, batch: int, compiled: bool, watch: str
) -> Callable[[], Any]:
    """One optimizer step on random audio. watch: "" or "hooks", or "dropin", which observes the model and ends the step."""
    dropin = DropIn(model, total_steps=1000) if watch == "dropin" else None
    if watch == "hooks":
        hook_activations(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    audio = torch.randn(batch, seconds * RATE, device=device)
    labels = torch.arange(batch, device=device) % 2
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward(input_values=audio, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dropin is not None:
            dropin.step(optimizer)

    return step


def training_actions(device: str, quick: bool) -> dict[str, Callable[[], Any]]:
    """The step of the stock model and of a watched copy: base widths, fewer layers on a CPU."""
    layers, seconds, batch = (12, 10, 8) if device == "cuda" else (3, 4, 1)
    config = Wav2Vec2Config(
        hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=layers, layerdrop=0.0, apply_spec_augment=False
    )
    model = Wav2Vec2ForSequenceClassification(config).to(device).train()
    model.freeze_feature_encoder()  # as is usual; without it, and with masked spectra, the model compiles in many pieces
    forms = {"stock": (False, ""), "stock with hooks": (False, "hooks"), "patched": (False, "dropin")}
    if device == "cuda" and not quick:
        forms |= {"stock, compiled": (True, ""), "patched, compiled": (True, "dropin")}
    return {
        name: training_step(copy.deepcopy(model), device, seconds, batch, compiled, watch)
        for name, (compiled, watch) in forms.items()
    }


def measure(case: str, actions: dict[str, Callable[[], Any]], device: str, rounds: int) -> list[dict[str, Any]]:
    """A row per action. All are timed in turn, every second round backwards; ratios are medians of the rounds' ratios."""
    for action in actions.values():
        for _ in range(WARMUP):
            action()
    peaks = {name: peak_memory(action, device) for name, action in actions.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for index in range(rounds):
        for name in list(actions)[:: -1 if index % 2 else 1]:
            times[name].append(timed(actions[name], device))
    anchor = [total for total, _ in next(iter(times.values()))]
    return [
        {
            "operation": "ffn_activation",
            "case": case,
            "form": name,
            "ms": statistics.median(total for total, _ in runs) * 1e3,
            "host_ms": statistics.median(host for _, host in runs) * 1e3,
            "ratio": statistics.median(total / stock for (total, _), stock in zip(runs, anchor, strict=True)),
            "peak_bytes": peaks[name],
        }
        for name, runs in times.items()
    ]


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """All rows; `quick` leaves out what has to be compiled and takes fewer rounds."""
    rounds = 7 if quick else 31
    inner = measure("neurons, forward and backward", inner_actions(device, quick), device, rounds)
    return inner + measure("wav2vec2 training step", training_actions(device, quick), device, rounds)
