"""Ranks in separate processes that compute metrics of given units, for tests over several ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import forked_processes
import torch
from torch import Tensor, distributed, multiprocessing

from perceiver_dist.metrics.metric_totals import MetricTotals
from pipelines.shards.source import SourceConfig

Unit = tuple[Tensor, Tensor, Tensor]
"""Logits (B, classes), labels, and `valid` (B,) of a unit."""


class ScoringRanks:
    """Process group as a context manager."""

    def __init__(self, world_size: int, folder: Path) -> None:
        self._world_size = world_size
        self._folder = folder

    def __enter__(self) -> Self:
        pipes = [multiprocessing.Pipe() for _ in range(self._world_size)]
        self._ends = [mine for mine, _ in pipes]
        arguments = (self._world_size, self._folder, [theirs for _, theirs in pipes])
        self._processes = forked_processes.start(_rank, arguments, self._world_size)
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.send(None)
        self._processes.join()

    def metrics(self, source: SourceConfig, units: Sequence[Unit]) -> list[dict[str, float]]:
        """Return the metrics that each rank computes; unit u goes to rank u modulo world size."""
        for rank, end in enumerate(self._ends):
            end.send((source, units[rank :: self._world_size]))
        results = [end.recv() for end in self._ends]
        for result in results:
            if isinstance(result, str):
                raise AssertionError(result)
        return results


def metrics_of(source: SourceConfig, units: Sequence[Unit]) -> dict[str, float]:
    """Return the metrics of units, over all ranks if this process is one of a group."""
    totals = MetricTotals(source, torch.device("cpu"))
    for unit in units:
        totals.update(*unit)
    return totals.compute().metrics


def _rank(rank: int, world_size: int, folder: Path, ends: list[Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    while (units_of_source := ends[rank].recv()) is not None:
        try:
            ends[rank].send(metrics_of(*units_of_source))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            ends[rank].send(f"{type(error).__name__}: {error}")
    distributed.destroy_process_group()
