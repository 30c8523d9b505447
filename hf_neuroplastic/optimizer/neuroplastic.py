"""NeuroPlastic: an optimizer whose steps are scaled, element by element, by a plasticity coefficient.

Source: arXiv 2604.26297. The formulas are in `neuroplastic_kernels.plasticity_step.reference`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from neuroplastic_kernels import FUSED_DTYPES, NeuronFactor, is_flat, is_sharded, plasticity_steps, select, settle

from .clipping import gradient_factor
from .diagnostics import diagnose
from .options import (
    NOT_OF_A_STEP,
    RULES,
    Given,
    check_options,
    is_flattened,
    refuse_flattened,
    refuse_joined,
    refuse_strangers,
    tell_idle,
    tell_long_vector,
)
from .state import check_entry, completed_groups, fits, initial_state, matched_state, refuse_cut_blocks, restored

STEP_OPTIONS = tuple(name for name in RULES if name not in NOT_OF_A_STEP)
GROUP_SEEDS = 0x9E3779B97F4A7C15  # between the seeds of groups: odd, so that they differ


class NeuroPlastic(Optimizer):
    """AdamW whose step, element by element, is scaled by a plasticity coefficient alpha, at AdamW's cost in time and memory.

        alpha = clip(.4 * sqrt(v)/mean + .4 * |g|/mean + .2 * |m|/(sqrt(v) + eps)/mean, .2, 2)
        p <- p - lr * h * alpha * m'/(sqrt(v') + eps)                h = ||base|| / ||alpha*base||

    m and v are Adam's moments of the gradient g; the three means, and h, which holds the norm of the step, are those of this
    tensor's step before. The first step is AdamW's own.

        optimizer = NeuroPlastic(model.parameters(), lr=5e-5, weight_decay=0.01)
        trainer = Trainer(model, args, train_dataset=data, optimizers=(optimizer, None))
        trainer.train()

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them. Real, dense, floating.
        lr: step size >= 0; a float or a one-element tensor.
        base: the step that is modulated. "adamw": AdamW's, with its learning rates. "momentum": SGD's with momentum b1.
            "gradient": the paper's form, the raw gradient, with learning rates near 0.1.
        betas: decays (b1, b2) of the moments; None takes (.9, .999) for "adamw" and (.9, .99) otherwise.
        activity: the first signal. "rms": sqrt(v'), which needs no state of its own. "trace": the paper's running mean of |g|,
            4 bytes per parameter more. None takes "trace" for "gradient", which knows no other, and "rms" otherwise.
        statistics: whose means alpha is divided by. "previous": those of the step before, in one pass over memory. "exact":
            those of this step, in three. None takes "exact" for "gradient", which knows no other, and "previous" otherwise.
        trace_decay: decay of the trace of |g|.
        signal_weights: weights of the activity, of |g| and of the memory |m'|/(sqrt(v') + eps).
        alpha_range: bounds (lo, hi) of the coefficient before blending.
        plasticity_scale: how far alpha goes from the coefficient of |g| alone, clip(|g|/mean), to the full one; 1 is all the
            way, 0 is |g| alone.
        strength: 1 for alpha as it is, 0 for the bare base: torch's AdamW, SGD with momentum, or SGD. (AdamW's bits too: in
            PyTorch those of foreach=True, in C++ those of fused=True, but for a few elements at a tensor's end.)
        warmup_steps: optimizer steps over which `plasticity_scale` rises from 0.
        max_update_norm: limit of a tensor's update norm, base "gradient" only; None or inf for no limit.
        target_rms, homeostatic_rate: a gain 1 + rate * (target_rms - rms) within [.5, 1.5], base "gradient" only; rate 0
            for none. The other bases hold the norm of the base's step in every tensor: with statistics "exact" each step
            has this norm, with "previous" it is what would have given the step before this norm.
        eps: added to denominators.
        weight_decay: decay >= 0.
        decoupled_weight_decay: True shrinks parameters by lr * weight_decay (AdamW), False adds the decay to the gradient,
            or to the update for the base "gradient". None takes True for "adamw" and False otherwise.
        maximize: ascend instead of descend.
        max_grad_norm: clip the norm of all gradients together to this, as torch.nn.utils.clip_grad_norm_ would before the
            step; None for no clipping. It takes the place of Trainer's, to which then give max_grad_norm=0. Groups that name
            different norms are clipped apart: each number limits the norm of the groups that name it.
        skip_nonfinite: leave a tensor whose gradient holds inf or NaN, and its state, as they are, and count the step in the
            state `skipped`. Without it the elements concerned become NaN for good, as under AdamW (with max_grad_norm, all).
        stochastic_rounding: round bfloat16 parameters up or down at random such that steps too small for them add up.
        seed: of that rounding and of 8-bit state's.
        state_bits: 32, or 8 to keep the state in about 2 bytes per parameter rather than 8. Contiguous float32 and
            half-precision tensors of at least 4096 elements take it whose rows (what an index of the first dimension holds) are
            a multiple of 16 elements; others stay as they are, matrices with a warning. Whole and sharded tensors have the same
            codes; a tensor that is sharded along another dimension than its first is refused. Meant for CUDA: on the CPU it is
            slow. DropIn does not replace neurons under it.
        backend: "auto": Triton on CUDA devices, C++ on the CPU, PyTorch where neither can run. "fused" (Triton), "native" (C++)
            and "reference" (PyTorch) raise where they cannot. They agree to rounding. The system's compiler builds the native
            form on first use, in seconds, and keeps it in ~/.cache/neuroplastic_kernels (XDG_CACHE_HOME and
            NEUROPLASTIC_CACHE_DIR are respected).

    Attributes:
        neuron_factors: parameter -> NeuronFactor(values, dim), empty at first: what each neuron's part of the parameter's
            step is multiplied by, last of all before the learning rate. 1 is exactly as without, 0 freezes the part, but for
            decoupled decay. Change the values in place between steps; they are not part of `state_dict`. Every process of a
            sharded parameter gives the values of all its neurons.

    All but `backend` may differ between groups. The state of a parameter is AdamW's, `step` (a float32 scalar; on the CPU, but
    for CUDA parameters that the fused form may take), `exp_avg` and `exp_avg_sq` (of its shape; float32 for half precision,
    otherwise its own dtype; codes with `state_bits=8`, and then `scales`), and `sums` (5 numbers: see `diagnostics`); `trace`
    where activity is "trace". AdamW's state loads into NeuroPlastic, and with state_bits=32 back: without loss for float32 and
    float64, while AdamW rounds the state of half-precision parameters to their dtype.

    Sharded parameters (DTensor, as fully_shard makes them) are stepped shard by shard, and their sums are added up over the
    processes for all parameters together: one all-reduce per step, mesh and dtype of 20 bytes per float32 or half-precision
    tensor (40 for float64), in two parts with statistics "exact"; none with strength 0. `skip_nonfinite` takes one more, of 4
    bytes per tensor (8); `max_grad_norm` another, of 8 bytes, with `skip_nonfinite` 16 per tensor. Sharding changes results by
    the order of these sums alone, and no bit of 8-bit codes or random rounding.

    With torch.amp.GradScaler the step itself takes the loss scale off and is left out, parameters, state and counters alike,
    if a gradient overflowed; `grad` stays scaled. A fused step can be captured in a CUDA graph, after one step outside; a
    learning rate that changes must then be a tensor on the device.

    Deviations from the paper: those of `neuroplastic_kernels.plasticity_step.reference`.

    Raises:
        ValueError: an option out of its range, or a complex or otherwise unsupported parameter, by name.
        TypeError: tensors flattened into one vector (FSDP1, DeepSpeed's ZeRO), but with strength 0 and neither `max_grad_norm`
            nor `skip_nonfinite`; here or at the first step.
        RuntimeError: a backend or compiler that is asked for and missing or failing; sparse gradients; a parameter whose
            gradient or state has another shape.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        base: str = "adamw",
        betas: tuple[float, float] | None = None,
        activity: str | None = None,
        statistics: str | None = None,
        trace_decay: float = 0.95,
        signal_weights: tuple[float, float, float] = (0.4, 0.4, 0.2),
        alpha_range: tuple[float, float] = (0.2, 2.0),
        plasticity_scale: float = 1.0,
        strength: float = 1.0,
        warmup_steps: float = 0,
        max_update_norm: float | None = 1.0,
        target_rms: float = 0.02,
        homeostatic_rate: float = 0.01,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool | None = None,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_bits: int = 32,
        backend: str = "auto",
    ) -> None:
        given = locals()
        select("plasticity_step", backend)
        self.backend = backend
        self.neuron_factors: dict[Tensor, NeuronFactor] = {}
        self._workspace: dict[Any, Any] = {}
        self._given: dict[int, Given] = {}  # by the id of a group, since DeepSpeed steps one group at a time
        self._flattened = False  # whether vectors of FSDP1 were admitted
        super().__init__(params, {name: given[name] for name in RULES})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not set come from the constructor. Raises as the constructor does."""
        if isinstance(param_group, dict):
            param_group.update(check_options({**self.defaults, **param_group}, f"group {len(self.param_groups)}"))
        super().add_param_group(param_group)
        if len(set(param_group["params"])) < len(param_group["params"]):
            self.param_groups.pop()
            raise ValueError(f"group {len(self.param_groups)} holds a parameter twice; leave repetitions out")
        for index, param in enumerate(param_group["params"]):
            if param.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                self.param_groups.pop()
                raise ValueError(
                    f"parameter {index} of group {len(self.param_groups)} is {param.dtype}: NeuroPlastic takes float16, "
                    "bfloat16, float32 and float64; leave it out or convert it"
                )
        try:
            refuse_flattened(param_group["params"], param_group)
            if param_group["state_bits"] == 8:
                refuse_cut_blocks(param_group["params"], len(self.param_groups) - 1)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        tell_long_vector(param_group["params"])
        self._given[id(param_group)] = Given.of(param_group["params"])

    def __getstate__(self) -> dict[str, Any]:
        settle(self._workspaces())
        kept = {"backend": self.backend, "neuron_factors": self.neuron_factors}
        return {**super().__getstate__(), **kept, "_workspace": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("neuron_factors", {})
        self._given = {id(group): Given.of(group["params"]) for group in self.param_groups}
        self._flattened = any(is_flattened(param) for group in self.param_groups for param in group["params"])
        for number, (param, entry) in enumerate(self.state.items()):
            check_entry(number, param, entry)
        for index, group in enumerate(self.param_groups):
            group.update(check_options({**self.defaults, **group}, f"group {index}"))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler is to set `grad_scale` and `found_inf` around a step, or to unscale and to skip by itself.

        accelerate knows a skipped step by `step` not being called, for which it puts a function of its own in the place of
        `step`: scheduler and DropIn go by that, so there GradScaler skips.
        """
        return "patch_optimizer_step" not in getattr(vars(self).get("step"), "__qualname__", "")

    @torch.compiler.disable(reason="NeuroPlastic.step is one kernel as it is, and runs beside compiled graphs")
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if a closure is given.

        torch.compile leaves this alone, but for what the closure compiles itself.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.neuron_factors:
            refuse_strangers(self.neuron_factors, self.param_groups)
        for group in self.param_groups if self._flattened else ():
            refuse_flattened(group["params"], group)
        for group in self.param_groups:
            refuse_joined(group, self._given.get(id(group)))
        settle(self._workspaces())
        lists = [self._lists(group) for group in self.param_groups]
        gradients = (grad for tensors in lists if tensors is not None for grad in tensors["grads"])
        if all(grad is None for grad in gradients) and any(
            param.numel() for group in self.param_groups for param in group["params"]
        ):
            tell_idle()
        factors = self._gradient_factors(lists)
        plasticity_steps([
            {
                **tensors,
                "gradient_factor": factors.get(group["max_grad_norm"]),
                "found_inf": getattr(self, "found_inf", None),
                "backend": self.backend,
                "workspace": workspace,
                **{name: group[name] for name in STEP_OPTIONS},
                "seed": (group["seed"] + index * GROUP_SEEDS) % 2**63,
            }
            for index, (group, tensors, workspace) in enumerate(
                zip(self.param_groups, lists, self._workspaces(), strict=True)
            )
            if tensors is not None
        ])  # fmt: skip
        return loss

    def _workspaces(self) -> list[dict[Any, Any]]:
        return [self._workspace.setdefault(index, {}) for index in range(len(self.param_groups))]

    def state_dict(self) -> dict[str, Any]:
        """As torch's; waits for sums of sharded tensors that are under way."""
        settle(self._workspaces())
        return super().state_dict()

    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step of every parameter did, from the sums it left, which costs nothing.

        Returns scalars on the first parameter's device, over all parameters that were stepped: `alpha_rms`, the root of the
        mean of alpha^2, weighted with base^2; `activity_mean`, `gradient_mean` and `memory_mean`, the means of the three
        signals; `base_norm`, the norm of the base's step, which h restores, before the learning rate (for the base "gradient"
        the gradient's norm); `skipped`, the sum of all skipped steps, with `skip_nonfinite`. With strength 0 the sums are 0,
        `alpha_rms` NaN. Raises RuntimeError before the first step.
        """
        settle(self._workspaces())
        stepped = ((param, self.state.get(param)) for group in self.param_groups for param in group["params"])
        return diagnose((param.numel(), state) for param, state in stepped if state)

    def _lists(self, group: dict[str, Any]) -> dict[str, Any] | None:
        """The tensors of a group's step, as arguments of `plasticity_step`; None if this process has nothing to do.

        Parameters without a gradient stay in the list, so that a layer dropped now and then changes no table, and so that
        processes agree on what they add up. They get no state before their first gradient.
        """
        params = group["params"]
        grads = [param.grad for param in params]
        if not any(grad is not None or is_sharded(param) for param, grad in zip(params, grads, strict=True)):
            return None
        states = [self.state.get(param) or {} for param in params]
        for number, (param, state, grad) in enumerate(zip(params, states, grads, strict=True)):
            if not state and grad is not None:
                states[number] = self._new_state(param, group)
            elif state and not fits(state, group):
                states[number] = self.state[param] = restored(param, state, group, self._counter_device(param))
        return {
            "params": params,
            "grads": grads,
            "states": states,
            "neuron_factors": list(map(self.neuron_factors.get, params)) if self.neuron_factors else None,
        }

    def _gradient_factors(self, lists: Sequence[dict[str, Any] | None]) -> dict[float | None, Tensor | None]:
        """For each `max_grad_norm`, what the gradients that are clipped to this norm are multiplied by; None for by 1."""
        held: dict[float | None, tuple[list[Tensor], list[Tensor | None]]] = {}
        for group, tensors in zip(self.param_groups, lists, strict=True):
            params, grads = held.setdefault(group["max_grad_norm"], ([], []))
            if tensors is not None:
                dense = [
                    grad is not None and grad.layout is torch.strided for grad in tensors["grads"]
                ]  # see plasticity_step
                params += tensors["params"]
                grads += [grad if is_dense else None for grad, is_dense in zip(tensors["grads"], dense, strict=True)]
        finite_only = any(group["skip_nonfinite"] for group in self.param_groups)
        scale = getattr(self, "grad_scale", None)
        return {
            norm: gradient_factor(grads, norm, scale, finite_only, params)
            for norm, (params, grads) in held.items()
            if any(grad is not None for grad in grads) or any(map(is_sharded, params))
        }

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        self._admit(param, group)
        state = self.state[param]
        state.update(initial_state(param, group, self._counter_device(param)))
        return state

    def _admit(self, param: Tensor, group: dict[str, Any]) -> None:
        """Asked again when state is made: a model may have been wrapped since the optimizer was."""
        refuse_flattened([param], group)
        self._flattened |= is_flattened(param)

    def _counter_device(self, param: Tensor) -> torch.device:
        shard = getattr(param, "_local_tensor", param)
        fused = param.is_cuda and self.backend != "reference" and param.dtype in FUSED_DTYPES and is_flat(shard)
        return param.device if fused else torch.device("cpu")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, keeping its tensors in their own precision, or in that of this optimizer's `state_bits`.

        The state of torch's Adam and AdamW is taken as it is: the next step is AdamW's own, those after it are plastic; a trace
        starts anew. Options it does not hold keep their defaults. Raises ValueError, before anything changes, for a state of
        other keys or shapes.
        """
        settle(self._workspaces())
        saved: list[tuple[Tensor, dict[str, Any]]] = []
        given = [self._given.get(id(group)) for group in self.param_groups]

        def check(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            saved.extend(matched_state(self, incoming))
            return {**incoming, "param_groups": completed_groups(self, incoming["param_groups"])}

        def restore(_: Optimizer) -> None:
            groups = {param: group for group in self.param_groups for param in group["params"]}
            for param, entry in saved:
                self.state[param] = restored(param, entry, groups[param], self._counter_device(param))

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
        self._given.update({id(g): as_given for g, as_given in zip(self.param_groups, given, strict=True) if as_given})
