"""DeepSpeed engine of one rank. Its configuration is derived here and nowhere else."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.compilation import compile_layers
from perceiver_dist.preflight.memory import reduction_bucket
from perceiver_dist.training.zero.accumulation import accumulation_steps
from perceiver_dist.training.zero.lamb import Lamb
from perceiver_dist.training.zero.optimizer import base_optimizer, build_optimizer, create_state
from perceiver_dist.training.zero.partitions import pieces_by_parameter, whole_shapes

_COMPILED_ELEMENTS = 2**22
"""Elements of a micro-batch's latents, (B, N, D), from which layers are compiled: 8 samples of the paper's ImageNet
model. On an H200 its steps took 0.90 times as long when compiled with 32 samples, and 1.04 times with 4, which wait for
launches (docs/experiments.md)."""


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run.

    Parameters are fp32 at every stage, and bf16 is autocast in the forward pass. It has to be DeepSpeed's own section:
    on CUDA its engine turns off an autocast that was entered around it, and would silently compute in fp32.

    Args:
        config: The run's configuration.
        world_size: Number of ranks, at most `train.lanes`.

    Returns:
        A mapping for `deepspeed.initialize`, in which `deepspeed.overrides` take precedence.
    """
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(config.train.lanes, world_size),
        # At stage 0 DeepSpeed would clip by a norm that is not finite, so the optimizer clips itself; see optimizer.py.
        "gradient_clipping": config.optim.clip_norm if config.deepspeed.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.deepspeed.zero_stage,
            "reduce_bucket_size": reduction_bucket(config),
        },
        # Without "safe modules", whose gradients DeepSpeed would reduce in bf16.
        "torch_autocast": {
            "enabled": config.train.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        # DeepSpeed's throughput timer waits for the device at the start and the end of every micro-step.
        "timers": {"throughput": {"enabled": False}},
        # Lamb and the guarded optimizers are not on DeepSpeed's list of optimizers for ZeRO.
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own log lines would repeat ours; so many steps are never reached.
        "steps_per_print": 2**31,
    }
    return _merge(derived, config.deepspeed.overrides)


def build_engine(model: nn.Module, config: RunConfig, world_size: int) -> Any:
    """Wrap a model in a DeepSpeed engine with its optimizer. The process group must exist.

    Args:
        model: The Perceiver with the weights to start from, fp32, on the training device.
        config: The run's configuration.
        world_size: Number of ranks.

    Returns:
        The `deepspeed.DeepSpeedEngine`.
    """
    deepspeed = _import_deepspeed()
    device = next(model.parameters()).device
    if compiles_layers(config, device.type):
        compile_layers(model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, config.optim, partitioned=config.deepspeed.zero_stage > 0),
        config=deepspeed_config(config, world_size),
        dist_init_required=False,
    )
    create_state(engine, with_average=config.optim.ema_decay > 0)
    optimizer = base_optimizer(engine)
    if isinstance(optimizer, Lamb):
        optimizer.split(pieces_by_parameter(engine), len(whole_shapes(engine)), partial(_reduce, engine))
    return engine


def compiles_layers(config: RunConfig, device: str) -> bool:
    """Return whether the latents' layers are compiled: `train.compile`, or the choice made for null.

    null compiles on CUDA with ZeRO stages 0 to 2, where a micro-batch is large enough to gain from it and a C compiler
    is installed, without which Triton cannot start a kernel.

    Args:
        config: The run's configuration.
        device: Type of the device, as in `torch.device.type`.
    """
    if config.train.compile is not None:
        return config.train.compile
    elements = config.train.micro_batch * config.model.latents * config.model.width
    return (
        device == "cuda"
        and config.deepspeed.zero_stage < 3
        and elements >= _COMPILED_ELEMENTS
        and any(which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    )


def _reduce(engine: Any, sums: Tensor) -> Tensor:
    """Return (2, tensors) sums over all ranks. At stage 0 every rank holds whole tensors, so its sums are complete."""
    if not engine.zero_optimization_stage():
        return sums
    reduced = sums.to(engine.device)
    torch.distributed.all_reduce(reduced)
    return reduced.to(sums.device)


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next optimizer step. Frozen parameter groups keep 0.

    Args:
        engine: The DeepSpeed engine.
        rate: Learning rate of every parameter group that is not frozen, times the group's own factor.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0 if group["frozen"] else rate * group["rate"]


def _import_deepspeed() -> Any:
    # Without a GPU DeepSpeed would still choose CUDA because of torch's build, and compile a shared-memory collective
    # with g++ at the first start. gloo does the same, reproduces every bit, and needs no compiler.
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
