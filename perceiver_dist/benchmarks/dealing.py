"""Benchmark of dealing: how many units a second one dataset can hand to many ranks, by units per block.

All blocks of a run pass through one actor of Ray Data, the `SplitCoordinator`. Here tiny units that cost nothing to
make are dealt to as many light consumers as a large run has ranks. On a machine with few cores the consumers and
readers are the limit; the CPU time of the actor says how many units it could deal with a core of its own.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import psutil
import ray
import torch

from perceiver_dist.benchmarks.processes import measure_in_subprocess, run_measurement
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.cluster.connect import QUIET
from perceiver_dist.data.batches import UnitStream
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.training.zero.accumulation import units_of_rank
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units.block_order import BlockOrder
from pipelines.units.plan import TrainingPlan
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import Unit, UnitMaker

_MODULE = "perceiver_dist.benchmarks.dealing"
_SOURCE = "tiny"
_WARM_UP = 0.25
"""Share of the steps in which processes start and blocks grow, and which do not count."""


@dataclass(frozen=True)
class DealingTask:
    """Task of one measuring process.

    Attributes:
        ranks: Number of consumers, each with one lane.
        units: Largest number of units in a block.
        steps: Units that each consumer takes.
        readers: Read tasks at a time.
    """

    ranks: int
    units: int
    steps: int
    readers: int


@dataclass(frozen=True)
class DealingSpeed:
    """Result of one measuring process.

    Attributes:
        units_per_second: Units that all consumers together took.
        coordinator_seconds: CPU time of the `SplitCoordinator` for each unit.
    """

    units_per_second: float
    coordinator_seconds: float


class _ZeroMaker(UnitMaker):
    """A maker that reads and decodes nothing."""

    def make(self, number: int, memory: Unit | None = None) -> Unit:
        unit = self._empty_unit(number, memory)
        return unit | {"keys": np.full(self.plan.unit_size, "shard.tar/sample", object)}


def measure_dealing(
    ranks: int = 64, units: list[int] | None = None, steps: int = 200, readers: int = 2
) -> ResultTable:
    """Measure how many units a second one dataset deals to many ranks, by units per block.

    Args:
        ranks: Number of consumers.
        units: Largest numbers of units in a block, powers of two; by default 1, 16 and 64.
        steps: Units that each consumer takes; a quarter of them is a warm-up.
        readers: Read tasks at a time.

    Raises:
        UserError: An option is out of range, or a process failed.
    """
    units = units or [1, 16, 64]
    if min(ranks, readers, *units) < 1 or steps < 4 or any(count & (count - 1) for count in units):
        raise UserError(
            f"--ranks {ranks}, --units {units}, --steps {steps}, --readers {readers}: --ranks and --readers must be at "
            "least 1, --steps at least 4, --units powers of two"
        )
    rows = []
    for count in units:
        speed = measure_in_subprocess(_MODULE, DealingTask(ranks, count, steps, readers), DealingSpeed)
        cost = speed.coordinator_seconds
        rows.append([str(count), f"{speed.units_per_second:,.0f}", f"{1000 * cost:.2f}", f"{1 / cost:,.0f}"])
    return ResultTable(("units per block", "units/s", "coordinator ms per unit", "units/s of a core"), rows)


def measure(task: DealingTask) -> DealingSpeed:
    """Measure in this process.

    Args:
        task: Sizes.
    """
    ray.init(address="local", num_cpus=task.readers, include_dashboard=False, **QUIET)
    plan = TrainingPlan(_SOURCE, samples=1000, unit_size=32, chunk_size=4, seed=0)
    source = SourceConfig(_SOURCE, "", ["image"], num_classes=10)
    maker = _ZeroMaker(source, {"image": ImageInput(height=28, width=28, channels=1)}, SourceIndex([]), plan)
    order = BlockOrder(Schedule({_SOURCE: 1.0}), task.ranks, 0, task.steps, {_SOURCE: task.units})
    dataset = unit_dataset({_SOURCE: maker}, order, DataConfig(tasks=task.readers))
    streams = [
        UnitStream(shard, torch.device("cpu"), prefetch=1)
        for shard in dataset.streaming_split(task.ranks, equal=True)
    ]
    warm_up = int(task.steps * _WARM_UP)

    def take(rank: int, steps: range) -> None:
        for step in steps:
            numbers = range(step * task.ranks, (step + 1) * task.ranks)
            for unit in units_of_rank(rank, task.ranks, numbers, order.first_block(step)):
                streams[rank].take(_SOURCE, unit)

    with ThreadPoolExecutor(task.ranks) as pool:
        list(pool.map(take, range(task.ranks), [range(warm_up)] * task.ranks))
        started, cost = time.perf_counter(), _coordinator_seconds()
        list(pool.map(take, range(task.ranks), [range(warm_up, task.steps)] * task.ranks))
        seconds, cost = time.perf_counter() - started, _coordinator_seconds() - cost
    taken = task.ranks * (task.steps - warm_up)
    return DealingSpeed(taken / seconds, cost / taken)


def _coordinator_seconds() -> float:
    """Return the CPU time of the `SplitCoordinator` so far."""
    return sum(
        sum(process.cpu_times()[:2])
        for process in _descendants()
        if process.info["cmdline"] and "SplitCoordinator" in process.info["cmdline"][0]
    )


def _descendants() -> Iterator[Any]:
    here = psutil.Process()
    children = {process.pid for process in chain(here.children(recursive=True))}
    return (process for process in psutil.process_iter(["cmdline"]) if process.pid in children)


if __name__ == "__main__":
    run_measurement(DealingTask, measure)
