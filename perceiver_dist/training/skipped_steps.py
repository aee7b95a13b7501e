"""Skipped steps, whose gradient is not finite: counted, reported and limited.

DeepSpeed's stages 1 to 3 detect them by the gradient norm over all ranks, and skip the step on all of them. Stage 0
does so in `perceiver_dist/training/zero/optimizer.py`. The schedule advances as if the step had been taken: its samples
are not used again.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from perceiver_dist.errors import UserError
from perceiver_dist.training.tracker.handle import TrackerHandle


class SkippedSteps:
    """Counter of the skipped steps of a run. Each rank has one, and all have the same count.

    Args:
        engine: The DeepSpeed engine.
        limit: Number of skipped steps that ends the run.
        tracker: The `Tracker` actor.
        group: A gloo group of all ranks.
        before: Steps skipped before the engine was built.
    """

    def __init__(self, engine: Any, limit: int, tracker: TrackerHandle, group: Any, before: int) -> None:
        self._engine = engine
        self._limit = limit
        self._tracker = tracker
        self._group = group
        self._before = before
        self._seen = 0

    @property
    def count(self) -> int:
        """Steps skipped since the run began."""
        return self._before + int(self._engine.skipped_steps)

    def check(self, step: int, source: str, units: range, losses: Mapping[int, Tensor]) -> bool:
        """Check whether the engine skipped the last step. Every rank must call it after every step.

        Args:
            step: Optimizer steps taken, including this one.
            source: Source of the step.
            units: Numbers of the step's units, of all ranks.
            losses: Unit -> () loss on the device, for this rank's units.

        Returns:
            Whether the step was taken.

        Raises:
            UserError: The limit of skipped steps is reached.
        """
        if self._engine.skipped_steps == self._seen:
            return True
        self._seen = self._engine.skipped_steps
        # Only now: looking at a loss waits for the GPU.
        mine = [unit for unit, loss in losses.items() if not torch.isfinite(loss).item()]
        of_ranks: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(of_ranks, mine, group=self._group)
        bad = sorted(unit for units_of_rank in of_ranks for unit in units_of_rank)
        message = describe(step, source, units, bad)
        if distributed.get_rank() == 0:
            self._tracker.skipped_step.remote(message)
        if self.count >= self._limit:
            raise UserError(
                f"{self.count} steps were skipped, train.max_skipped_steps is {self._limit}; {message}; lower "
                "optim.learning_rate, or fix the samples of these units"
            )
        return False


def describe(step: int, source: str, units: range, bad: list[int]) -> str:
    """Return one line on a skipped step, with the option that shows its data.

    Args:
        step: Optimizer steps taken, including this one.
        source: Source of the step.
        units: Numbers of the step's units.
        bad: Units whose loss is not finite; empty if only the gradient is not.
    """
    what = f"the loss of unit {', '.join(map(str, bad))}" if bad else "the gradient"
    return (
        f"step {step} is skipped: {what} is not finite (source '{source}', units {units.start} to {units.stop - 1}); "
        f"--replay {source}/{(bad or units)[0]} shows what is in it"
    )
