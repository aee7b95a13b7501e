"""What a candidate costs before it starts, what it may cost, and how many steps a number of FLOPs pays for."""

from dataclasses import replace

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.cost import forward_flops, parameter_count
from perceiver_dist.preflight.dry_run import training_memory
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import TrialCost
from pipelines.units.schedule import Schedule

_TRAINING_PER_FORWARD = 3
"""FLOPs of a training step by those of its forward pass: backward is two matrix products for each forward one. What
activation checkpointing computes again is not counted, as usual."""


def cost_of(config: RunConfig, device: str) -> TrialCost:
    """Compute what a training costs.

    Args:
        config: The training.
        device: Type of the device, cpu or cuda, which decides how cross-attention is computed.

    Returns:
        Its cost. Steps learn from several sources with different FLOPs; their schedule is counted exactly.

    Raises:
        UserError: The model cannot be built.
    """
    flops = _flops_by_source(config, device)
    schedule, train = Schedule(config.weights), config.train
    weights = sum(config.weights.values())
    forward = sum(schedule.steps_before(name, train.steps) * flops[name] for name in flops)
    return TrialCost(
        parameters=parameter_count(config.model, config.heads),
        flops_per_sample=sum(flops[name] * config.weights[name] for name in flops) / weights,
        memory_per_rank=training_memory(config, device)["total"],
        steps=train.steps,
        training_flops=float(_TRAINING_PER_FORWARD * train.lanes * train.micro_batch * forward),
    )


def over_limit(cost: TrialCost, search: SearchConfig) -> str:
    """Return which limit a candidate is over, "" if none.

    Args:
        cost: What the candidate costs.
        search: Holds the limits.
    """
    for name in ("parameters", "flops_per_sample", "memory_per_rank"):
        limit = getattr(search, f"max_{name}")
        if limit is not None and getattr(cost, name) > limit:
            return f"over search.max_{name} {limit:g}"
    return ""


def fit_to_search(
    config: RunConfig, search: SearchConfig, training_flops: float | None, device: str
) -> RunConfig:
    """Return a candidate's training with its number of steps, and an evaluation at each equal share of them.

    Under equal FLOPs the warm-up keeps its share of the steps; a shape that gets few of them would otherwise spend
    them all on it.

    Args:
        config: The candidate's training, as varied.
        search: How many evaluations.
        training_flops: FLOPs that the steps may come to; None to keep the number of steps.
        device: Type of the device.

    Returns:
        The training. Its steps are a multiple of the evaluations, at least one for each.
    """
    steps: float = config.train.steps
    if training_flops is not None:
        steps *= training_flops / cost_of(config, device).training_flops
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


def _flops_by_source(config: RunConfig, device: str) -> dict[str, int]:
    return {source.name: forward_flops(config.model, source.modalities, device) for source in config.sources}
