"""One optimizer step over the parameter lists of real models: NeuroPlastic beside torch's AdamW, interleaved in one run."""

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import ASTConfig, ASTModel, Wav2Vec2Config, Wav2Vec2Model

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import SUMS, Hyperparameters
from neuroplastic_kernels.plasticity_step.reference import step_tensor

WIDE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "wav2vec2-base": lambda: Wav2Vec2Model(Wav2Vec2Config()),
    "AST": lambda: ASTModel(ASTConfig()),
    "wav2vec2-large": lambda: Wav2Vec2Model(
        Wav2Vec2Config(**WIDE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
    ),
    "211 tiny tensors": lambda: torch.nn.ParameterList(
        torch.zeros(16) for _ in range(211)
    ),  # what a step costs the host
}
OPTIONS = {"lr": 1e-5, "weight_decay": 0.01}
# Bytes per float32 parameter: every stream once (p, g, m, v; a), with an exact step's measuring passes, and of 8-bit codes.
ONCE, TRACE, EXACT, EIGHT_BIT = 28, 36, 28 + 2 * 12, 16 + 16 / 256
WARMUP, MAX_NORM = 3, 1.0
COMPILED, PATIENCE = "NeuroPlastic(torch.compile'd reference)", 120  # seconds to compile in
Build = Callable[[list[Tensor]], tuple[Any, Callable[[], Any]]]


class CompiledReference:
    """The reference's step of one tensor after the other, each taken flat, compiled by torch for any number of elements."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for p in params:
            moments = {name: torch.zeros_like(p).view(-1) for name in ("exp_avg", "exp_avg_sq")}
            self.state[p] = moments | {"step": torch.zeros(()), "sums": torch.zeros(SUMS, device=p.device)}
        rule = Hyperparameters(base="adamw", betas=(0.9, 0.999), decoupled_weight_decay=True, **OPTIONS)
        self._step = torch.compile(lambda p, g, state: list(step_tensor(p, g, state, rule, p.numel())), dynamic=True)

    @torch.no_grad()
    def step(self) -> None:
        for param, state in self.state.items():
            state["step"] += 1
            self._step(param.view(-1), param.grad.view(-1), state)


def stepping(make: Callable[..., Any], **options: Any) -> Build:
    def build(params: list[Tensor]) -> tuple[Any, Callable[[], Any]]:
        optimizer = make(params, **options)
        return optimizer, optimizer.step

    return build


def clipping(params: list[Tensor]) -> tuple[Any, Callable[[], Any]]:
    """What a training loop does: the norm of all gradients, the gradients times a factor, then the step."""
    optimizer = torch.optim.AdamW(params, **OPTIONS, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return optimizer, step


def optimizers(device: str, compiled: bool) -> dict[str, tuple[Build, float]]:
    """Name -> (how to build the optimizer and its step, the bytes per parameter that the step moves at least).

    Ratios refer to the first.
    """
    ours, best = lambda p, **options: NeuroPlastic(p, **OPTIONS, **options), "fused" if device == "cuda" else "native"
    fused = stepping(torch.optim.AdamW, **OPTIONS, fused=True, capturable=device == "cuda")
    built: dict[str, tuple[Build, float]] = {
        "AdamW(fused)": (fused, ONCE),
        "AdamW(foreach)": (stepping(torch.optim.AdamW, **OPTIONS, foreach=True), ONCE),
        "clip_grad_norm_ + AdamW(fused)": (clipping, ONCE + 12),
        f"NeuroPlastic({best})": (stepping(ours, backend=best), ONCE),
        f"NeuroPlastic({best}, trace)": (stepping(ours, backend=best, activity="trace"), TRACE),
        f"NeuroPlastic({best}, exact)": (stepping(ours, backend=best, statistics="exact"), EXACT),
        f"NeuroPlastic({best}, max_grad_norm)": (stepping(ours, backend=best, max_grad_norm=MAX_NORM), ONCE + 4),
        "NeuroPlastic(reference)": (stepping(ours, backend="reference"), ONCE),
    }
    if device == "cuda":
        built["NeuroPlastic(fused, 8-bit)"] = (stepping(ours, backend="fused", state_bits=8), EIGHT_BIT)
    if compiled:
        built[COMPILED] = (stepping(CompiledReference), ONCE)
    return built


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError once `seconds` have passed, where the system has an alarm clock."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(action: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds until the work is done, and until the call returned."""
    synchronize(device)
    start = time.perf_counter()
    action()
    returned = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - start, returned - start


def memory_bandwidth(device: str, elements: int = 1 << 26) -> float:
    """Bytes read and written per second, by the better of a copy (two streams) and an addition in place (three)."""
    source, target = torch.ones(elements, device=device), torch.ones(elements, device=device)
    streams = {2: lambda: target.copy_(source), 3: lambda: target.add_(source)}
    size = source.numel() * source.element_size()
    return max(n * size / min(timed(action, device)[0] for _ in range(10)) for n, action in streams.items())


def peak_memory(action: Callable[[], Any], device: str) -> int | None:
    """Bytes one step needs beyond what is allocated before it; None where it is not counted."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    return torch.cuda.max_memory_allocated() - before


def launches(action: Callable[[], Any], device: str) -> int | None:
    """What one call starts on the device: kernels, copies and fills; None on the CPU."""
    if device != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        action()
        synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def state_bytes(optimizer: Any) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def prepared(
    build: Callable[[], tuple[Any, Callable[[], Any]]], device: str
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """An optimizer's step, warmed up, and what is counted once: bytes kept and needed, launches."""
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    optimizer, step = build()
    for _ in range(WARMUP):
        step()
    kept = torch.cuda.memory_allocated() - before if device == "cuda" else None
    counted = {
        "state_bytes": state_bytes(optimizer),
        "kept_bytes": kept,  # state and workspace, on CUDA
        "peak_bytes": peak_memory(step, device),
        "launches": launches(step, device),
    }
    return step, counted


def interleaved(first: Callable[[], Any], second: Callable[[], Any], device: str, rounds: int) -> dict[str, float]:
    """Medians over rounds of both steps in turns: the second's milliseconds, those of its host, and its ratio to the first."""
    times = [(timed(first, device)[0], *timed(second, device)) for _ in range(rounds)]
    return {
        "ms": 1e3 * statistics.median(seconds for _, seconds, _ in times),
        "host_ms": 1e3 * statistics.median(host for _, _, host in times),
        "ratio": statistics.median(seconds / anchor for anchor, seconds, _ in times),
    }


def measure(model: str, device: str, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """A row per optimizer, each in turns with the first one; of the others only one is in memory at a time."""
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in MODELS[model]().parameters()]
    params = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for param in params:  # all optimizers step the same parameters
        param.grad = torch.randn_like(param) * 1e-3
    count, bandwidth, built = sum(p.numel() for p in params), memory_bandwidth(device), optimizers(device, compiled)
    anchor, rows = prepared(lambda: next(iter(built.values()))[0](params), device)[0], list[dict[str, Any]]()
    for name, (build, size) in built.items():
        try:
            with time_limit(PATIENCE if name == COMPILED else 0):
                step, counted = prepared(lambda build=build: build(params), device)
        except Exception as error:
            if name != COMPILED:
                raise
            print(f"{name} of {model} is left out, it does not compile: {type(error).__name__}: {error}")
            continue
        took = interleaved(anchor, step, device, rounds)
        moved = {
            "bytes_per_parameter": size,
            "share_of_bandwidth": size * count / (took["ms"] / 1e3) / bandwidth,
            "bandwidth_gb_per_s": bandwidth / 1e9,
        }
        where = {"operation": "plasticity_step", "model": model, "tensors": len(shapes), "parameters": count}
        rows.append({**where, "optimizer": name, **took, **moved, **counted})
        del step
    return rows


def run(device: str, quick: bool, compiled: bool = False) -> list[dict[str, Any]]:
    """All rows; `quick` takes the first and the last list and fewer rounds; `compiled`: torch.compile on the CPU, too."""
    models, rounds = list(MODELS)[:: 3 if quick else 1], 5 if quick else 15
    rows: list[dict[str, Any]] = []
    compiled = compiled or device == "cuda"
    for model in models:
        rows += measure(model, device, rounds, compiled)
        compiled = compiled and rows[-1]["optimizer"] == COMPILED  # what failed once is not tried again
    return rows
