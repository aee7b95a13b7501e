"""Training with real DeepSpeed engines at uneven world sizes, optionally with one infinite loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ranks
import torch
from torch import distributed

from perceiver_dist.config.run_config import TrainConfig, WorkerRange
from perceiver_dist.training.zero.accumulation import micro_steps_of_rank

LANES = 4
STEPS = 8
BAD_UNIT = 4 * LANES + 1
"""A unit of the fifth step whose loss is made infinite on request."""


def train(world_size: int, _: Path, stage: int, bad: bool) -> list[float]:
    """Take all steps; return their losses, followed by the number of skipped steps."""
    engine = _engine(world_size, stage)
    rank = distributed.get_rank()
    losses = []
    for step in range(STEPS):
        units = range(step * LANES, (step + 1) * LANES)
        total = torch.zeros(())
        for micro_step in micro_steps_of_rank(rank, world_size, units, 0):
            loss = ranks.lane_loss(engine, step, micro_step.unit % LANES)
            if bad and micro_step.unit == BAD_UNIT:
                loss = loss * torch.inf
            engine.backward(loss * micro_step.weight)
            engine.step()
            if not micro_step.is_padding:
                total += loss.detach() / LANES
        distributed.all_reduce(total)
        losses.append(total.item())
    return [*losses, float(engine.skipped_steps)]


def _engine(world_size: int, stage: int) -> Any:
    from perceiver_dist.model.perceiver import Perceiver
    from perceiver_dist.training.zero.engine import build_engine

    workers = WorkerRange(1, LANES)
    config = replace(
        ranks.CONFIG,
        deepspeed=ranks.zero(stage),
        train=TrainConfig(steps=STEPS, micro_batch=4, lanes=LANES, num_workers=workers),
    )
    torch.manual_seed(0)
    return build_engine(Perceiver(config.model, config.heads), config, world_size)
