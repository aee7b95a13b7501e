"""Memory of a rank: model states as DeepSpeed keeps them, and what a step needs beyond them.

Bytes are those of tensors, in the allocator's blocks, so they compare to `torch.cuda.max_memory_allocated`. Not
included: the CUDA context, cuBLAS's workspaces, and what the allocator holds in reserve (`max_memory_reserved`).

Of P parameters on W ranks, all in fp32, since bf16 is only an autocast of the forward pass: parameters 4P, gradients
4P, two moments 8P. Stages 1 to 3 update an fp32 copy of the rank's partition, 4P / W, even if the parameters are fp32.
With `optim.ema_decay` the optimizer keeps an average of the weights, 4P more; the model that is filled with it for an
evaluation takes less than a backward pass. As in the ZeRO paper (arXiv 1910.02054, figure 1), stage 1 divides what
belongs to the optimizer by W, stage 2 gradients too, stage 3 parameters too; but it keeps what it has gathered, up to
1e9 parameters (`stage3_max_live_parameters`).
tests/preflight/test_memory.py compares all of it with DeepSpeed's engine.
"""

from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import InternalError
from perceiver_dist.model.cost import parameter_count
from perceiver_dist.preflight.step_trace import trace_step

_FP32_BYTES = 4
_TRACED = (16, 128)
"""Micro-batches of the two traces, between and beyond which every allocation is taken to be linear in the samples. At
the papers' settings the result is that of a trace at 1 to 4,096 samples to 0.1%, with one exception: the tiles of
plain separable and factored attention reach their full size only at 3 to 10 samples (`_TILE_SCORES`), and are counted
in full below as well, up to 1 GiB too much."""
_LARGEST_BUCKET, _LIVE_PARAMETERS = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and of `stage3_max_live_parameters`."""
_MOST_SAMPLES = 2**24
"""Upper end of the search for the largest micro-batch."""
_UPDATE_COPIES = {0: 2, 1: 4, 2: 4, 3: 4}
"""fp32 copies of what a rank updates that exist at once in the optimizer's step, by ZeRO stage: its gradients, a
flattened copy from stage 1 on, and temporary arrays of Adam. Read off traces of DeepSpeed's engine (1.3, 4, 4 and 4 on
CPUs, where Adam at stage 0 takes one tensor after the other; on CUDA it takes all at once)."""


def training_memory(config: RunConfig, device: str, ranks: int | None = None) -> dict[str, int]:
    """Return the bytes that a rank needs, by part.

    Args:
        config: The configuration.
        device: Device type, cpu or cuda; the machine need not have it.
        ranks: Number of ranks; the run's smallest if None, since with fewer ranks each needs more.

    Returns:
        Bytes of:

        - parameters, optimizer: kept all the time.
        - gathered_parameters: those of all ranks, at stage 3.
        - gradients: sums over the micro-batches of a step; 0 if a step has only one, except at stage 3.
        - reduction_buffer: where DeepSpeed collects the gradients of a backward pass, from stage 1 on.
        - activations: what forward and backward allocate at their peak, with the micro-batch's arrays.
        - optimizer_step: what the optimizer's step allocates at its peak, with gradients.
        - total: parameters and optimizer, and the larger of what backward and the optimizer's step need.

    Raises:
        UserError: The model cannot be built.
    """
    samples = config.train.micro_batch
    activations = max(
        _peak(*_step(config, modalities, samples, device)) for modalities in _modalities(config)
    )
    parts = _states(config, ranks or config.train.min_workers) | {"activations": activations}
    return parts | {"total": _total(config, parts)}


def largest_micro_batch(config: RunConfig, capacity: float) -> int:
    """Return the largest micro-batch with which a rank fits into a GPU's memory.

    Args:
        config: The configuration. Its own micro-batch plays no part; of an elastic run, the minimum number of workers
            counts.
        capacity: Bytes.

    Returns:
        Number of samples; 0 if none fits.

    Raises:
        UserError: The model cannot be built.
        InternalError: The allocations of a step depend on the micro-batch.
    """
    few, many = _TRACED
    lines = []
    for modalities in _modalities(config):
        first, second = (
            np.array(trace_step(*_step(config, modalities, samples, "cuda")), dtype=float)
            for samples in _TRACED
        )
        if len(first) != len(second):
            raise InternalError(
                f"a step allocates {len(first)} times with {few} samples and {len(second)} times with {many}: "
                "an allocation depends on the micro-batch, see step_trace.py"
            )
        lines.append((first, (second - first) / (many - few)))

    states = _states(config, config.train.min_workers)

    def total(samples: int) -> int:
        activations = max(float((start + slope * (samples - few)).max()) for start, slope in lines)
        return _total(config, states | {"activations": round(activations)})

    return bisect_right(range(1, _MOST_SAMPLES), capacity, key=total)


def reduction_bucket(config: RunConfig) -> int:
    """Return the elements of the buffer in which DeepSpeed collects gradients, at ZeRO stages 1 to 3.

    DeepSpeed allocates it in full, by default 2 GB whatever the model's size. A backward pass gives each parameter one
    gradient, so a buffer of the model's size holds all of them.

    Args:
        config: The configuration, whose `deepspeed.overrides` take precedence.

    Raises:
        UserError: The model cannot be built.
    """
    chosen = config.deepspeed.overrides.get("zero_optimization", {}).get("reduce_bucket_size")
    return int(chosen or min(parameter_count(config.model, config.heads), _LARGEST_BUCKET))


def _step(config: RunConfig, modalities: tuple[str, ...], samples: int, device: str) -> tuple[Any, ...]:
    """Return the arguments of `trace_step`."""
    heads = tuple(config.heads.items())
    return config.model, heads, modalities, samples, config.train.precision, device


@lru_cache(maxsize=10_000)
def _peak(*step: Any) -> int:
    """Return the largest number of bytes in a trace. It is kept, since a search asks for the same shapes repeatedly."""
    return max(trace_step(*step))


def _modalities(config: RunConfig) -> set[tuple[str, ...]]:
    """Return the sets of modalities that occur: a step has those of its source."""
    return {tuple(sorted(source.modalities)) for source in config.sources}


def _states(config: RunConfig, ranks: int) -> dict[str, int]:
    """Return the parts of `training_memory` that do not depend on the micro-batch."""
    stage, count = config.deepspeed.zero_stage, parameter_count(config.model, config.heads)
    whole, part = _FP32_BYTES * count, _FP32_BYTES * -(-count // ranks)
    accumulates, averages = config.train.lanes > ranks, config.optim.ema_decay > 0
    return {
        "parameters": part if stage == 3 else whole,
        "gathered_parameters": min(whole, _FP32_BYTES * _LIVE_PARAMETERS) if stage == 3 and ranks > 1 else 0,
        "gradients": part if stage == 3 else (part if stage == 2 else whole) * accumulates,
        "optimizer": (3 + averages) * part if stage else (2 + averages) * whole,
        "reduction_buffer": _FP32_BYTES * reduction_bucket(config) if stage else 0,
        "optimizer_step": _UPDATE_COPIES[stage] * (part if stage else whole),
    }


def _total(config: RunConfig, parts: Mapping[str, int]) -> int:
    needed = ("gathered_parameters", "gradients", "reduction_buffer", "activations")
    backward = sum(parts[name] for name in needed)
    # Stage 3 keeps its buffer, the others free theirs before.
    buffer = parts["reduction_buffer"] if config.deepspeed.zero_stage == 3 else 0
    return parts["parameters"] + parts["optimizer"] + max(backward, parts["optimizer_step"] + buffer)
