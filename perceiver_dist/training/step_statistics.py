"""Statistics of a rank's steps between two logs: mean losses, time, and the share spent waiting for data.

Losses go with a checkpoint, so that a mean that is logged after a resume is over as many steps as any other. Times do
not: throughput is that of the workers that log it.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from perceiver_dist.checkpoint.manifest import LossSum


@dataclass(frozen=True)
class StepTotals:
    """Losses and times of the steps since the last log, over all ranks.

    Attributes:
        losses: Mean loss by source, without the sources that had no finite loss.
        loss: Mean loss over all sources; NaN if none was finite.
        seconds: Mean over the ranks.
        data_wait_fraction: Share of the time that ranks waited for data.
        units: Units learned from in this time; after a resume fewer than the losses are of.
        ranks: Seconds of forward passes, and of waiting for data, of each rank.
    """

    losses: dict[str, float]
    loss: float
    seconds: float
    data_wait_fraction: float
    units: float
    ranks: tuple[tuple[float, float], ...]


class StepStatistics:
    """Losses and times since the last log. They are summed on the device, so that no step waits for a loss.

    Args:
        sources: Names of the run's sources.
        device: Device of the losses.
        before: Source -> losses since the last log that a checkpoint holds; on one rank only, since ranks are added up.
    """

    def __init__(self, sources: list[str], device: torch.device, before: Mapping[str, LossSum]) -> None:
        self._sources = sources
        # Sum of finite losses, number of finite losses, number of units.
        sums = [
            [before[source].total, before[source].count, 0] if source in before else [0, 0, 0]
            for source in sources
        ]
        self._sums = torch.tensor(sums, dtype=torch.float64, device=device)
        self._waited_before = 0.0
        self._started = time.perf_counter()

    def add(self, source: str, loss: Tensor) -> None:
        """Add a unit's loss. A loss that is not finite counts as a unit only.

        Args:
            source: Name of the unit's source.
            loss: () mean over the unit's samples.
        """
        # Tensor operations throughout: an `if` on the loss would wait for the device.
        finite = loss.isfinite()
        row = self._sums[self._sources.index(source)]
        row[0] += torch.where(finite, loss, 0.0)
        row[1] += finite
        row[2] += 1

    def sums(self) -> Tensor:
        """Return a copy of the sums since the last log, on the device, without waiting for it."""
        return self._sums.clone()

    def unlogged_losses(self, sums: Tensor) -> dict[str, LossSum]:
        """Return the losses of this rank by source, without the sources that have none. It waits for the device.

        Args:
            sums: From `sums`.
        """
        return {
            source: LossSum(total, int(finite))
            for source, (total, finite, _) in zip(self._sources, sums.tolist(), strict=True)
            if finite
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside, on an evaluation or a checkpoint.

        Yields:
            Nothing; the clock is stopped meanwhile.
        """
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def close(
        self, waited: float, forward: float, rank: int, world_size: int, keep_losses: bool = False
    ) -> StepTotals:
        """Reduce over the ranks and reset. Every rank must call it.

        Args:
            waited: Seconds that this rank has waited for data since it started.
            forward: Seconds of this rank's forward passes since the last call.
            rank: This rank.
            world_size: Number of ranks.
            keep_losses: Whether the next log is over the losses until now too, as after a log out of turn.

        Returns:
            The totals, the same on every rank.
        """
        seconds = time.perf_counter() - self._started
        # A row for each rank, of which this one fills its own: their sum has the times of all.
        times = torch.zeros(world_size, 3, dtype=torch.float64)
        times[rank] = torch.tensor([seconds, forward, waited - self._waited_before], dtype=torch.float64)
        # One all-reduce for losses and times.
        totals = torch.cat([self._sums, times.to(self._sums.device)])
        distributed.all_reduce(totals)
        rows = totals.tolist()
        losses, ranks = rows[: len(self._sources)], rows[len(self._sources) :]
        all_seconds = sum(of_rank for of_rank, _, _ in ranks)
        if not keep_losses:
            self._sums.zero_()
        self._waited_before = waited
        self._started = time.perf_counter()
        all_finite = sum(finite for _, finite, _ in losses)
        return StepTotals(
            losses={
                name: total / finite
                for name, (total, finite, _) in zip(self._sources, losses, strict=True)
                if finite
            },
            loss=sum(total for total, _, _ in losses) / all_finite if all_finite else math.nan,
            seconds=all_seconds / world_size,
            data_wait_fraction=sum(waiting for _, _, waiting in ranks) / all_seconds,
            units=sum(count for _, _, count in losses),
            ranks=tuple((computing, waiting) for _, computing, waiting in ranks),
        )
