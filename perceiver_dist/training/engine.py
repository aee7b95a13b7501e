"""The DeepSpeed engine of one rank: its configuration is derived here and nowhere else."""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from perceiver_dist.config import RunConfig
from perceiver_dist.training.lanes import turns

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's running mean of the gradient and of its square."""


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run.

    Precision is not in it: parameters are fp32 for every stage, and bf16 is autocast of the forward pass.

    Args:
        config: The run's configuration.
        world_size: Number of ranks, at most `train.lanes`.

    Returns:
        A JSON-like mapping for `deepspeed.initialize`, with `deepspeed.overrides` merged last.
    """
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": turns(config.train.lanes, world_size),
        # Without partitioning DeepSpeed would clip to a norm that is not finite; see _GuardedAdamW.
        "gradient_clipping": config.optim.clip_norm if config.deepspeed.zero_stage else 0.0,
        "zero_optimization": {"stage": config.deepspeed.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    return _merge(derived, config.deepspeed.overrides)


def build_engine(model: nn.Module, config: RunConfig, world_size: int) -> Any:
    """Wrap a model in a DeepSpeed engine with AdamW. The process group must exist.

    Args:
        model: The Perceiver with the weights to start from, fp32, on the training device.
        config: The run's configuration.
        world_size: Number of ranks.

    Returns:
        The `deepspeed.DeepSpeedEngine`.
    """
    deepspeed = _import_deepspeed()
    optim = config.optim
    groups = parameter_groups(model, optim.weight_decay)
    betas = (optim.beta1, optim.beta2)
    optimizer = (
        torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas)
        if config.deepspeed.zero_stage
        else _GuardedAdamW(groups, optim.learning_rate, betas, optim.clip_norm)
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, world_size),
        dist_init_required=False,
    )
    _create_adam_state(engine)
    return engine


class _GuardedAdamW(torch.optim.AdamW):
    """AdamW for ZeRO stage 0: clips, and skips a step whose gradient is not finite, as DeepSpeed's stages 1 to 3 do.

    DeepSpeed reads `overflow` and `_global_grad_norm` of its own optimizers after a step, and so of this one.
    """

    def __init__(
        self, groups: list[dict[str, Any]], rate: float, betas: tuple[float, float], clip_norm: float
    ) -> None:
        super().__init__(groups, lr=rate, betas=betas)
        self._clip_norm = clip_norm or math.inf
        self._global_grad_norm = 0.0
        self.overflow = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # torch's returns a closure's loss
        """Clip and take a step, or none.

        Args:
            closure: Not used; torch's signature.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step(closure)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into decayed matrices, and biases, norms, latents and encodings, which are not decayed.

    Args:
        model: The Perceiver.
        weight_decay: Weight decay of the matrices.

    Returns:
        Parameter groups for a torch optimizer.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and not name.startswith(("latents", "encodings"))
        (decayed if is_matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of all parameter groups for the next optimizer step.

    Args:
        engine: The DeepSpeed engine.
        rate: Learning rate of every parameter group.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def adam_step(engine: Any) -> int:
    """Return how many steps AdamW's bias correction believes were taken.

    Args:
        engine: The DeepSpeed engine.
    """
    state = next(iter(base_optimizer(engine).state.values()))
    return int(state["step"])


def set_adam_step(engine: Any, steps: int) -> None:
    """Set how many steps AdamW's bias correction believes were taken.

    Args:
        engine: The DeepSpeed engine.
        steps: Optimizer steps taken.
    """
    for state in base_optimizer(engine).state.values():
        state["step"].fill_(float(steps))


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the AdamW that DeepSpeed calls.

    Args:
        engine: The DeepSpeed engine.
    """
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def _create_adam_state(engine: Any) -> None:
    """Create AdamW's state, as its first step would, so that a checkpoint can be put into it before that step."""
    stage = engine.zero_optimization_stage()
    base = base_optimizer(engine)
    if stage == 3:
        updated = list(engine.optimizer.fp32_partitioned_groups_flat)
    elif stage in (1, 2):
        updated = list(engine.optimizer.single_partition_of_fp32_groups)
    else:
        updated = [parameter for group in base.param_groups for parameter in group["params"]]
    for tensor in updated:
        base.state[tensor] = {
            "step": torch.tensor(0.0),
            **{name: torch.zeros_like(tensor) for name in MOMENTS},
        }
    if stage in (1, 2):
        # DeepSpeed links parameters to their pieces of the state after stepping the first parameter group, when
        # the other groups have no state yet, and their state could never be read. Linking here, it can.
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _import_deepspeed() -> Any:
    # DeepSpeed would pick CUDA from the build of torch, and compile a shared-memory collective with g++ at the
    # first start on CPU. gloo does the same work, bit-reproducibly, and a machine without g++ can train.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in extra.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
