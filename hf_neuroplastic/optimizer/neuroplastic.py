"""NeuroPlastic: an optimizer whose steps are scaled, element by element, by a plasticity coefficient.

Source: arXiv 2604.26297. The formulas are in `neuroplastic_kernels.plasticity_step.formulas`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from neuroplastic_kernels import Hyperparameters, NeuronFactor, gradient_squares, plasticity_step, select

from .diagnostics import diagnose
from .options import RULES, STORAGE, check_options, refuse_strangers
from .state import completed_groups, decoded, initial_state, matched_state, restored

STEP_OPTIONS = tuple(name for name in RULES if name not in STORAGE)


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
        max_grad_norm: clip the norm of all gradients together to this, as torch.nn.utils.clip_grad_norm_ would before the
            step; None for no clipping. It takes the place of Trainer's, to which then give max_grad_norm=0. Groups that name
            different norms are clipped apart: each number limits the norm of the groups that name it.
        stochastic_rounding: round bfloat16 parameters up or down at random such that steps too small for them add up.
        seed: of that rounding and of 8-bit state's.
        state_bits: 32, or 8 to keep the state in about 3 bytes per parameter rather than 12. Contiguous, unsharded float32
            and half-precision tensors of at least 4096 elements take it, others stay as they are. Meant for CUDA: on the
            CPU it is slow. DropIn does not replace neurons under it.
        capturable: keep step counters on the parameters' device for the reference form too, so that it can be captured in a
            CUDA graph; the fused form always can, after one step outside. A learning rate that changes must be a tensor.
        compile: for parameters on the CPU: take the step in C++, four to five times as fast. The system's compiler builds it
            on first use, in a second or two, and it is kept in ~/.cache/neuroplastic_kernels (XDG_CACHE_HOME and
            NEUROPLASTIC_CACHE_DIR are respected). None does so where it can and goes on with PyTorch elsewhere; True
            raises where it cannot; False is PyTorch. They agree to rounding. (A fused step on CUDA builds a small library
            there too, if it can, which reads where tensors lie.)
        backend: "auto", "reference" or "fused".

    Attributes:
        neuron_factors: parameter -> NeuronFactor(values, dim), empty at first: what each neuron's part of the parameter's
            step is multiplied by, last of all before the learning rate. 1 is exactly as without, 0 freezes the part, but for
            decoupled decay. Change the values in place between steps; they are not part of `state_dict`.

    All but `compile` and `backend` may differ between groups. The state of a parameter is `step` (a float32 scalar; on the
    CPU, but for CUDA parameters that the fused form may take), `trace`, `exp_avg` and `exp_avg_sq` (of its shape; float32 for
    half precision, otherwise its own dtype; codes with `state_bits=8`, and then `scales`).

    With torch.amp.GradScaler the step itself takes the loss scale off and is left out, parameters, state and counters alike,
    if a gradient overflowed; `grad` stays scaled.

    Means and norms are taken over a whole tensor, so a non-finite gradient makes its whole tensor non-finite.

    Deviations from the paper: warm-up counts steps rather than epochs; the bases "adamw" and "momentum", whose homeostasis
    conserves the step's norm; `strength`; decoupled decay.

    Raises:
        ValueError: an option out of its range, or a complex or otherwise unsupported parameter, by name.
        RuntimeError: a backend or compiler that is asked for and missing or failing; sparse gradients; `compile` with
            parameters that are not on the CPU, in `step`; a parameter whose gradient or state has another shape.
    """

    _step_supports_amp_scaling = True  # GradScaler then sets `grad_scale` and `found_inf` around a step

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
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_bits: int = 32,
        capturable: bool = False,
        compile: bool | None = None,
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
            "max_grad_norm": max_grad_norm,
            "stochastic_rounding": stochastic_rounding,
            "seed": seed,
            "state_bits": state_bits,
            "capturable": capturable,
        }
        select("plasticity_step", backend, compile=compile)
        self.compile, self.backend = compile, backend
        self.neuron_factors: dict[Tensor, NeuronFactor] = {}
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
        kept = {"compile": self.compile, "backend": self.backend, "neuron_factors": self.neuron_factors}
        return {**super().__getstate__(), **kept, "_workspace": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("neuron_factors", {})
        for index, group in enumerate(self.param_groups):
            group.update(check_options({**self.defaults, **group}, f"group {index}"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.neuron_factors:
            refuse_strangers(self.neuron_factors, self.param_groups)
        lists = [self._lists(group) for group in self.param_groups]
        squares = self._gradient_squares(lists)
        for index, (group, tensors) in enumerate(zip(self.param_groups, lists, strict=True)):
            if tensors is not None:
                plasticity_step(
                    **tensors,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                    gradient_squares=squares.get(group["max_grad_norm"]),
                    backend=self.backend,
                    compile=self.compile,
                    workspace=self._workspace.setdefault(index, {}),
                    **{name: group[name] for name in STEP_OPTIONS},
                )
        return loss

    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step did, from the state and the gradients it used: call it after `step`, before `zero_grad`.

        Returns scalars on the parameters' device, over all parameters with a gradient: `alpha_mean`; `share_at_lower` and
        `share_at_upper`, the shares of elements whose coefficient lies at or beyond the bounds of `alpha_range`;
        `update_gradient_ratio`, the norm of the step before the learning rate over that of the gradient. With coupled decay
        they take the parameter as it is now, and gradients as they are: not clipped, no loss scale taken off. Raises
        RuntimeError if no stepped parameter has a gradient.
        """
        return diagnose(
            (
                param,
                decoded(self.state[param]),
                self.neuron_factors.get(param),
                {k: group[k] for k in Hyperparameters._fields},
            )
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None and param.numel() and self.state.get(param)
        )

    def _lists(self, group: dict[str, Any]) -> dict[str, Any] | None:
        """The tensors of a group's step, as arguments of `plasticity_step`; None if nothing has a gradient."""
        params = group["params"]
        grads = [param.grad for param in params]
        states: list[Any] = list(map(self.state.get, params))
        if not all(states):
            # A parameter without a gradient stays once it has a state: a layer dropped now and then changes no table.
            kept = [i for i, (grad, state) in enumerate(zip(grads, states, strict=True)) if state or grad is not None]
            params, grads = [params[i] for i in kept], [grads[i] for i in kept]
            states = [self.state[param] or self._new_state(param, group) for param in params]
        if all(grad is None for grad in grads):
            return None
        return {
            "params": params,
            "grads": grads,
            "traces": [state["trace"] for state in states],
            "exp_avgs": [state["exp_avg"] for state in states],
            "exp_avg_sqs": [state["exp_avg_sq"] for state in states],
            "steps": [state["step"] for state in states],
            "scales": [state.get("scales") for state in states] if group["state_bits"] == 8 else None,
            "neuron_factors": list(map(self.neuron_factors.get, params)) if self.neuron_factors else None,
        }

    def _gradient_squares(self, lists: Sequence[dict[str, Any] | None]) -> dict[float | None, Tensor]:
        """For each `max_grad_norm`, the sum of squares of all gradients that are clipped to it."""
        clipped: dict[float, list[Tensor | None]] = {}
        for group, tensors in zip(self.param_groups, lists, strict=True):
            if tensors is not None and group["max_grad_norm"] is not None:
                clipped.setdefault(group["max_grad_norm"], []).extend(tensors["grads"])
        return {
            norm: gradient_squares(
                grads, backend=self.backend, workspace=self._workspace.setdefault(("squares", number), {})
            )
            for number, (norm, grads) in enumerate(clipped.items())
        }

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = self.state[param]
        state.update(initial_state(param, group["state_bits"], self._counter_device(param, group)))
        return state

    def _counter_device(self, param: Tensor, group: dict[str, Any]) -> torch.device:
        may_be_fused = param.is_cuda and self.backend != "reference"
        return param.device if group["capturable"] or may_be_fused else torch.device("cpu")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, keeping its tensors in their own precision, or in that of this optimizer's `state_bits`.

        A state without a trace, as torch's Adam and AdamW save it, is taken with a trace that starts anew. Options it does
        not hold keep their defaults. Raises ValueError, before anything changes, for a state of other keys or shapes.
        """
        saved: list[tuple[Tensor, dict[str, Any]]] = []

        def check(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            saved.extend(matched_state(self, incoming))
            return {**incoming, "param_groups": completed_groups(self, incoming["param_groups"])}

        def restore(_: Optimizer) -> None:
            groups = {param: group for group in self.param_groups for param in group["params"]}
            for param, entry in saved:
                group = groups[param]
                self.state[param] = restored(param, entry, group["state_bits"], self._counter_device(param, group))

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
