"""Optimizer of a rank and its state: AdamW or LAMB, whose moments have the same names."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from perceiver_dist.checkpoint.format import AVERAGE, MOMENTS
from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.training.zero.lamb import Lamb

_EPS = {"adamw": 1e-8, "lamb": 1e-6}
"""As in the authors' published code (deepmind-research, perceiver/train/experiment.py)."""

_LEARNED_INPUTS = ("latents", "encodings", "decoder.queries")
"""Prefixes of the parameters that weight decay leaves out unless `optim.decay_latents` is set."""

_HEAD_RATE = {"adamw": 10.0, "lamb": 1.0}
"""What `optim.head_rate` null means. Small heads at the rate of other weights cost the default model, in 600 steps of
AdamW, a hundredth of accuracy and more; at ten times the rate nothing (docs/experiments.md). Steps of LAMB are relative
to a weight's size, so small heads need no rate of their own."""


def build_optimizer(model: nn.Module, optim: OptimConfig, partitioned: bool) -> Optimizer:
    """Return the optimizer that the DeepSpeed engine wraps.

    AdamW on CUDA is torch's fused one, which reads and writes everything once in one kernel. On CPUs it stays the plain
    one: the fused one's bits differ.

    Args:
        model: The Perceiver.
        optim: Options of the optimizer.
        partitioned: Whether DeepSpeed partitions its state (stages 1 to 3). DeepSpeed clips the gradient then.
    """
    groups = with_head_rate(parameter_groups(model, optim), model, optim)
    # torch wants a learning rate; `set_learning_rate` sets that of every step.
    options: dict[str, Any] = {"lr": optim.learning_rate, "betas": (optim.beta1, optim.beta2)}
    options["eps"] = _EPS[optim.optimizer] if optim.eps is None else optim.eps
    kind: type[AdamW] | type[Lamb] = Lamb
    if optim.optimizer == "adamw":
        options["fused"] = _has_fused_kernels(model)
        kind = AdamW
    if partitioned:
        return kind(groups, **options)
    guarded = (_GuardedAdamW if kind is AdamW else _GuardedLamb)(groups, **options)
    guarded.clip_norm = optim.clip_norm or math.inf
    return guarded


def _has_fused_kernels(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cuda"


class _Guard(Optimizer):
    """Mixin for ZeRO stage 0 that clips, and skips a step whose gradient is not finite, as stages 1 to 3 do.

    After a step DeepSpeed reads `overflow` and `_global_grad_norm` of the optimizer, as of its own ones.
    """

    overflow = False
    _global_grad_norm = 0.0
    clip_norm = math.inf

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # torch's returns a closure's loss
        """Clip the gradient and take a step, or skip it.

        Args:
            closure: Not used; torch's signature.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step(closure)


class _GuardedAdamW(_Guard, AdamW):
    """AdamW for ZeRO stage 0."""


class _GuardedLamb(_Guard, Lamb):
    """LAMB for ZeRO stage 0."""


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Split parameters into those with weight decay and those without.

    Matrices have it, biases and norms do not. Latents, encodings and decoder queries, learned inputs rather than
    weights, have it with `optim.decay_latents`. Frozen parameters form a group too, with a learning rate of 0, because
    ZeRO needs every parameter to take part.

    Args:
        model: The Perceiver.
        optim: Weight decay, and the frozen parts of the model.

    Returns:
        Parameter groups for a torch optimizer. The entry `frozen` tells whether the learning rate is always 0.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    still: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_input = name.startswith(_LEARNED_INPUTS)
        is_decayed = optim.decay_latents if is_input else parameter.ndim == 2
        is_frozen = name.partition(".")[0] in optim.frozen
        (still if is_frozen else decayed if is_decayed else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay, "frozen": False},
        {"params": free, "weight_decay": 0.0, "frozen": False},
        {"params": still, "weight_decay": 0.0, "frozen": True},
    ]
    return [group for group in groups if group["params"]]


def with_head_rate(
    groups: list[dict[str, Any]], model: nn.Module, optim: OptimConfig
) -> list[dict[str, Any]]:
    """Give the heads' weights a group of their own if their learning rate is another one (`optim.head_rate`).

    Args:
        groups: Groups of `parameter_groups`.
        model: The Perceiver.
        optim: Options of the optimizer.

    Returns:
        Groups with a further entry `rate`, the factor of their learning rate.
    """
    factor = _HEAD_RATE[optim.optimizer] if optim.head_rate is None else optim.head_rate
    heads = {p for name, p in model.named_parameters() if name.startswith("heads.") and p.ndim == 2}
    if factor == 1:
        return [{**group, "rate": 1.0} for group in groups]
    split = []
    for group in groups:
        others = [p for p in group["params"] if p not in heads]
        own = [p for p in group["params"] if p in heads]
        split += [{**group, "params": others, "rate": 1.0}, {**group, "params": own, "rate": factor}]
    return [group for group in split if group["params"]]


def adam_step(engine: Any) -> int:
    """Return the step count of the bias correction. With the fused optimizer it waits for the device.

    Args:
        engine: The DeepSpeed engine.
    """
    state = next(iter(base_optimizer(engine).state.values()))
    return int(state["step"])


def set_adam_step(engine: Any, steps: int) -> None:
    """Set the step count of the bias correction.

    Args:
        engine: The DeepSpeed engine.
        steps: Optimizer steps taken.
    """
    for state in base_optimizer(engine).state.values():
        state["step"].fill_(float(steps))


def base_optimizer(engine: Any) -> Optimizer:
    """Return the torch optimizer inside the engine.

    Args:
        engine: The DeepSpeed engine.
    """
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def has_average(engine: Any) -> bool:
    """Return whether the optimizer's state has the moving average of the weights.

    Args:
        engine: The DeepSpeed engine.
    """
    return AVERAGE in next(iter(base_optimizer(engine).state.values()))


def create_state(engine: Any, with_average: bool) -> None:
    """Create the optimizer's state as its first step would, so that a checkpoint can be loaded before that step.

    Args:
        engine: The DeepSpeed engine.
        with_average: Whether it has the moving average of the weights, beside the moments, so that it is partitioned as
            they are. It begins as a copy of the weights.
    """
    stage = engine.zero_optimization_stage()
    base = base_optimizer(engine)
    # The tensors that DeepSpeed passes to the optimizer: flat fp32 partitions, or at stage 0 the parameters.
    if stage == 3:
        updated = list(engine.optimizer.fp32_partitioned_groups_flat)
    elif stage in (1, 2):
        updated = list(engine.optimizer.single_partition_of_fp32_groups)
    else:
        updated = [parameter for group in base.param_groups for parameter in group["params"]]
    # The fused kernels count their steps on the device, others on the host.
    device = engine.device if base.defaults.get("fused") else torch.device("cpu")
    for tensor in updated:
        base.state[tensor] = {
            "step": torch.zeros((), device=device),
            **{name: torch.zeros_like(tensor) for name in MOMENTS},
        }
        if with_average:
            base.state[tensor][AVERAGE] = tensor.detach().clone()
    if stage in (1, 2):
        # DeepSpeed links parameters to their pieces of the state after stepping the first parameter group. The other
        # groups have no state at that time, so theirs could never be read. Linking here, all groups have their state.
        engine.optimizer._lazy_init_hp_params_optimizer_state()
