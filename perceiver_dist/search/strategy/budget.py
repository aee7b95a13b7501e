"""Budgets: cost of a candidate before it starts, limits on it, and the number of steps that equal FLOPs pay for."""

from collections.abc import Callable
from dataclasses import replace

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.cost import forward_flops, parameter_count
from perceiver_dist.preflight.memory import training_memory
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import TrialCost
from pipelines.units.schedule import Schedule

_TRAINING_PER_FORWARD = 3
"""FLOPs of a training step per FLOP of its forward pass: backward has two matrix products for each one in forward.
Recomputation by activation checkpointing is not counted, as is common for model FLOPs."""


def cost_of(config: RunConfig, device: str) -> TrialCost:
    """Compute the cost of a training.

    Args:
        config: Configuration of the training.
        device: Type of the device, cpu or cuda, which decides how cross-attention is computed.

    Returns:
        The cost. Steps of different sources take different FLOPs; the steps of each are counted exactly.

    Raises:
        UserError: The model cannot be built.
    """
    return TrialCost(
        parameters=parameter_count(config.model, config.heads),
        flops_per_sample=_flops_per_sample(config, device),
        memory_per_rank=training_memory(config, device)["total"],
        steps=config.train.steps,
        training_flops=training_flops_of(config, device),
    )


def training_flops_of(config: RunConfig, device: str) -> float:
    """Compute the FLOPs of a whole training, without the rest of its cost.

    Args:
        config: Configuration of the training.
        device: Type of the device, cpu or cuda, which decides how cross-attention is computed.

    Raises:
        UserError: The model cannot be built.
    """
    flops = _flops_by_source(config, device)
    schedule, train = Schedule(config.weights), config.train
    forward = sum(schedule.steps_before(name, train.steps) * flops[name] for name in flops)
    return float(_TRAINING_PER_FORWARD * train.lanes * train.micro_batch * forward)


def over_limit(config: RunConfig, search: SearchConfig, device: str) -> str:
    """Return the limit that a candidate exceeds, as a reason for rejecting it; "" if there is none.

    Memory comes last and only where it is limited: it takes a trace of the model, which is slow beside counting, and a
    search may reject a thousand candidates in a row.

    Args:
        config: Configuration of the candidate's training.
        search: Options of the search, which hold the limits.
        device: Type of the device, cpu or cuda.

    Raises:
        UserError: The model cannot be built.
    """
    costs: dict[str, Callable[[], float]] = {
        "parameters": lambda: parameter_count(config.model, config.heads),
        "flops_per_sample": lambda: _flops_per_sample(config, device),
        "memory_per_rank": lambda: training_memory(config, device)["total"],
    }
    for name, cost in costs.items():
        limit = getattr(search, f"max_{name}")
        if limit is not None and cost() > limit:
            return f"over search.max_{name} {limit:g}"
    return ""


def fit_to_search(
    config: RunConfig, search: SearchConfig, training_flops: float | None, device: str
) -> RunConfig:
    """Set the number of steps of a candidate, and space its evaluations evenly over them.

    With equal FLOPs the warm-up keeps its share of the steps. Otherwise an expensive shape, which gets few steps, could
    spend all of them on warm-up.

    Args:
        config: Configuration of the candidate.
        search: Options of the search, which hold the number of evaluations.
        training_flops: FLOPs to match by the number of steps; None to keep the number of steps.
        device: Type of the device.

    Returns:
        The configuration. Its steps are a multiple of the evaluations, at least one for each.
    """
    steps: float = config.train.steps
    if training_flops is not None:
        steps *= training_flops / training_flops_of(config, device)
    # Equal distances, so that evaluation n of any two trials comes after the same share of their training.
    between = max(round(steps / search.evaluations), 1)
    total = between * search.evaluations
    warmup = config.optim.warmup_steps
    if training_flops is not None:
        warmup = round(warmup * total / config.train.steps)
    return replace(
        config,
        train=replace(config.train, steps=total, eval_every=between),
        optim=replace(config.optim, warmup_steps=warmup),
    )


def _flops_per_sample(config: RunConfig, device: str) -> float:
    """Return the FLOPs of a forward pass of one sample, as a mean over the sources by weight."""
    flops = _flops_by_source(config, device)
    return sum(flops[name] * config.weights[name] for name in flops) / sum(config.weights.values())


def _flops_by_source(config: RunConfig, device: str) -> dict[str, int]:
    return {source.name: forward_flops(config.model, source.modalities, device) for source in config.sources}
