"""Ranks in processes of their own that add up what they are given, for tests of metrics over any number of ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, distributed, multiprocessing

from perceiver_dist.metrics.metric_totals import MetricTotals
from pipelines.shards.source import SourceConfig

Unit = tuple[Tensor, Tensor, Tensor]
"""Logits (B, classes), labels and `valid` (B,) of a unit."""


class ScoringRanks:
    """A group of ranks that lives as long as the context; its start takes seconds, a question milliseconds."""

    def __init__(self, world_size: int, folder: Path) -> None:
        self._world_size = world_size
        self._folder = folder

    def __enter__(self) -> Self:
        pipes = [multiprocessing.Pipe() for _ in range(self._world_size)]
        self._ends = [mine for mine, _ in pipes]
        self._processes = multiprocessing.spawn(
            _rank,
            (self._world_size, self._folder, [theirs for _, theirs in pipes]),
            nprocs=self._world_size,
            join=False,
        )
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.send(None)
        self._processes.join()

    def metrics(self, source: SourceConfig, units: Sequence[Unit]) -> list[dict[str, float]]:
        """Return the metrics that each rank finds; unit u goes to rank u modulo their number."""
        for rank, end in enumerate(self._ends):
            end.send((source, units[rank :: self._world_size]))
        answers = [end.recv() for end in self._ends]
        for answer in answers:
            if isinstance(answer, str):
                raise AssertionError(answer)
        return answers


def metrics_of(source: SourceConfig, units: Sequence[Unit]) -> dict[str, float]:
    """Return the metrics of units on one rank, or on this rank of the process group that there is."""
    totals = MetricTotals(source, torch.device("cpu"))
    for unit in units:
        totals.update(*unit)
    return totals.compute().metrics


def _rank(rank: int, world_size: int, folder: Path, ends: list[Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    while (question := ends[rank].recv()) is not None:
        try:
            ends[rank].send(metrics_of(*question))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            ends[rank].send(f"{type(error).__name__}: {error}")
    distributed.destroy_process_group()
