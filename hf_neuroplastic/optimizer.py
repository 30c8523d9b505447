"""NeuroPlastic: an optimizer whose steps are scaled, element by element, by a plasticity coefficient.

Source: arXiv 2604.26297. The formulas are in `neuroplastic_kernels.reference.plasticity_formulas`.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from neuroplastic_kernels import plasticity_step, select

from .optimizer_diagnostics import diagnose
from .optimizer_options import RULES, check_options

STATE = ("trace", "exp_avg", "exp_avg_sq")


class NeuroPlastic(Optimizer):
    """Modulates the step of a base optimizer by gradient magnitude, gradient activity and memory.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them. Real, dense, floating.
        lr: step size >= 0; a float or a one-element tensor.
        base: the step that is modulated. "adamw": AdamW's, with its learning rates. "momentum": SGD's with momentum b1.
            "gradient": the paper's form, the raw gradient, with learning rates near 0.1.
        betas: decays (b1, b2) of the moments; None takes (.9, .999) for "adamw" and (.9, .99) otherwise.
        trace_decay: decay of the trace of |g|.
        signal_weights: weights of the trace, of |g| and of the memory |m| / (sqrt(v) + eps).
        alpha_range: bounds (lo, hi) of the coefficient before blending.
        plasticity_scale: how far the coefficient goes from the gradient-only one to the full one; 1 is all the way.
        strength: 1 for the coefficient as it is, 0 for the bare base: torch's AdamW, SGD with momentum, or SGD.
        warmup_steps: optimizer steps over which `plasticity_scale` rises from 0.
        signals: "all", or "gradient" for the coefficient of |g| alone.
        max_update_norm: limit of a tensor's update norm, base "gradient" only; None or inf for no limit.
        target_rms, homeostatic_rate: a gain 1 + rate * (target_rms - rms) within [.5, 1.5], base "gradient" only; rate 0
            for none. The other bases keep the norm of the base's step in every tensor.
        eps: added to denominators.
        weight_decay: decay >= 0.
        decoupled_weight_decay: True shrinks parameters by lr * weight_decay (AdamW), False adds the decay to the gradient,
            or to the update for the base "gradient". None takes True for "adamw" and False otherwise.
        maximize: ascend instead of descend.
        compile: run the step of large tensors through `torch.compile`; on the CPU it needs a C++ compiler.
        backend: "auto", "reference" or "fused".

    All but `compile` and `backend` may differ between groups. The state of a parameter is `step` (a float32 scalar on the
    CPU), `trace`, `exp_avg` and `exp_avg_sq` (of its shape; float32 for half precision, otherwise its own dtype).

    Means and norms are taken over a whole tensor, so a non-finite gradient makes its whole tensor non-finite.

    Deviations from the paper: warm-up counts steps rather than epochs; the bases "adamw" and "momentum", whose homeostasis
    conserves the step's norm; `strength`; decoupled decay.

    Raises:
        ValueError: an option out of its range, or a complex or otherwise unsupported parameter, by name.
        RuntimeError: a backend or compiler that is asked for and missing; sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        base: str = "adamw",
        betas: tuple[float, float] | None = None,
        trace_decay: float = 0.95,
        signal_weights: tuple[float, float, float] = (0.4, 0.4, 0.2),
        alpha_range: tuple[float, float] = (0.2, 2.0),
        plasticity_scale: float = 1.0,
        strength: float = 1.0,
        warmup_steps: float = 0,
        signals: str = "all",
        max_update_norm: float | None = 1.0,
        target_rms: float = 0.02,
        homeostatic_rate: float = 0.01,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool | None = None,
        maximize: bool = False,
        compile: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "base": base,
            "betas": betas,
            "trace_decay": trace_decay,
            "signal_weights": signal_weights,
            "alpha_range": alpha_range,
            "plasticity_scale": plasticity_scale,
            "strength": strength,
            "warmup_steps": warmup_steps,
            "signals": signals,
            "max_update_norm": max_update_norm,
            "target_rms": target_rms,
            "homeostatic_rate": homeostatic_rate,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        select("plasticity_step", backend)
        if compile:
            require_compiler()
        self.compile, self.backend = compile, backend
        self._workspace: dict[Any, Any] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not set come from the constructor. Raises as the constructor does."""
        if isinstance(param_group, dict):
            param_group.update(check_options({**self.defaults, **param_group}, f"group {len(self.param_groups)}"))
        super().add_param_group(param_group)
        for index, param in enumerate(param_group["params"]):
            if param.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                self.param_groups.pop()
                raise ValueError(
                    f"parameter {index} of group {len(self.param_groups)} is {param.dtype}: NeuroPlastic takes float16, "
                    "bfloat16, float32 and float64; leave it out or convert it"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compile": self.compile, "backend": self.backend, "_workspace": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            group.update(check_options({**self.defaults, **group}, f"group {index}"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            states = [self._state_of(param) for param in params]
            plasticity_step(
                params,
                [param.grad for param in params],
                *([state[name] for state in states] for name in (*STATE, "step")),
                backend=self.backend,
                compile=self.compile,
                workspace=self._workspace,
                **{name: group[name] for name in RULES},
            )
        return loss

    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step did, from the state and the gradients it used: call it after `step`, before `zero_grad`.

        Returns scalars on the parameters' device, over all parameters with a gradient: `alpha_mean`; `share_at_lower` and
        `share_at_upper`, the shares of elements whose coefficient lies at or beyond the bounds of `alpha_range`;
        `update_gradient_ratio`, the norm of the step before the learning rate over that of the gradient. With coupled decay
        they take the parameter as it is now. Raises RuntimeError if no stepped parameter has a gradient.
        """
        return diagnose(
            (param, self.state[param], {name: group[name] for name in RULES})
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None and param.numel() and self.state.get(param)
        )

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        if param.grad is not None and param.grad.layout != torch.strided:
            raise RuntimeError(
                f"NeuroPlastic does not take {param.grad.layout} gradients, got one of shape {tuple(param.shape)}; "
                "use dense gradients, as nn.Embedding(sparse=False) has"
            )
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for name in STATE:
            if name not in state:
                state[name] = torch.zeros_like(param, dtype=state_dtype(param), memory_format=torch.preserve_format)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, keeping its tensors in their own precision.

        A state without a trace, as torch's Adam and AdamW save it, is taken with a trace that starts anew. Options it does
        not hold keep their defaults. Raises ValueError, before anything changes, for a state of other keys or shapes.
        """
        saved: list[tuple[Tensor, dict[str, Any]]] = []

        def check(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            saved.extend(matched_state(self, incoming))
            return {**incoming, "param_groups": completed_groups(self, incoming["param_groups"])}

        def restore(_: Optimizer) -> None:
            for param, entry in saved:
                self.state[param] = restored(param, entry)

        # torch rounds state to the parameter's dtype on loading; after every caller's hook, take the state as it was saved
        handles = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()


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
        yield param, entry


def completed_groups(optimizer: Optimizer, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, checked; what they do not set stays as the optimizer's groups have it."""
    completed = []
    for index, (own, group) in enumerate(zip(optimizer.param_groups, saved, strict=False)):
        completed.append({**group, **check_options({**own, **group}, f"group {index} of the state to load")})
    return completed + saved[len(completed) :]


def restored(param: Tensor, entry: dict[str, Any]) -> dict[str, Tensor]:
    """The state of one parameter from its saved form."""
    step = torch.as_tensor(entry["step"], dtype=torch.float32, device="cpu").clone()
    dtype = state_dtype(param)
    moments = {name: entry[name].to(param.device, dtype) for name in STATE if name in entry}
    return {"step": step, **moments}


def require_compiler() -> None:
    """Raise RuntimeError if `torch.compile` would find no C++ compiler for the CPU."""
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(name) is None:
        raise RuntimeError(
            f"compile=True needs a C++ compiler, but {name!r} was not found; install one (for example the package g++), "
            "name it in the environment variable CXX, or leave compile=False"
        )
