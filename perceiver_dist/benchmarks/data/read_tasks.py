"""Benchmark of read throughput by number of read tasks, to choose how many CPUs a run needs for reading."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import ray
import torch

from perceiver_dist.benchmarks import DEFAULT_CONFIG
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.cluster.connect import QUIET, start_ray
from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.batches import UnitStream
from perceiver_dist.data.shard_indexing import index_sources, list_shards
from perceiver_dist.errors import UserError
from perceiver_dist.training.datasets import training_units
from perceiver_dist.training.prepare import resolve, with_demo_data
from pipelines.shards.source import DataConfig
from pipelines.units.block_order import BlockOrder
from pipelines.units.block_size import units_per_block
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker


@dataclass(frozen=True)
class ReadThroughput:
    """Measured throughput of one source.

    Attributes:
        source: Name of the source.
        tasks: Concurrent read tasks, each on one CPU.
        samples_per_second: One value per repetition.
    """

    source: str
    tasks: int
    samples_per_second: list[float]

    @property
    def median(self) -> float:
        """Median samples per second."""
        return median(self.samples_per_second)


def measure_read_tasks(
    config: str = DEFAULT_CONFIG,
    tasks: list[int] | None = None,
    units: int = 256,
    repeats: int = 3,
    one_cpu_nodes: bool = False,
) -> ResultTable:
    """Measure the throughput of reading and decoding a run's samples, by number of read tasks.

    Args:
        config: YAML file of a run.
        tasks: Numbers of read tasks to measure; by default 1 and 2.
        units: Units to read each time; many more than data.units_per_task, since the last tasks run alone.
        repeats: Repetitions of each number of tasks.
        one_cpu_nodes: Measure on a local cluster with as many CPU-only nodes of one CPU as there are tasks.

    Raises:
        UserError: An option is out of range, a shard is missing or damaged, or a sample cannot be decoded.
    """
    tasks = tasks or [1, 2]
    if min(*tasks, repeats) < 1 or units < 4:
        raise UserError(
            f"--tasks {tasks}, --repeats {repeats}, --units {units}: --tasks and --repeats must be at least 1, --units "
            "at least 4"
        )
    run, _ = parse_run(run_parser(""), ["--config", config], [], RunConfig)
    nodes = OneCpuNodes() if one_cpu_nodes else None
    try:
        found = measure_throughput(run, tasks, units, repeats, nodes.set if nodes else None)
    finally:
        if nodes:
            nodes.close()
    # Reversed, so that the first number of tasks of each source is the baseline of its ratios.
    baseline = {result.source: result.median for result in reversed(found)}
    rows = []
    for result in found:
        rates = (result.median, min(result.samples_per_second), max(result.samples_per_second))
        ratio = result.median / baseline[result.source]
        rows.append([result.source, str(result.tasks), *(f"{rate:,.0f}" for rate in rates), f"{ratio:.2f}"])
    unit = "nodes" if one_cpu_nodes else "tasks"
    return ResultTable(("source", unit, "samples/s", "min", "max", "ratio"), rows)


def measure_throughput(
    config: RunConfig,
    tasks: Sequence[int],
    units: int,
    repeats: int,
    set_nodes: Callable[[int], None] | None = None,
) -> list[ReadThroughput]:
    """Read units of every source as training does, without training.

    Every repetition goes through all numbers of tasks, so that a machine whose speed drifts treats them alike.

    Args:
        config: A run's configuration.
        tasks: Numbers of read tasks to measure.
        units: Units to read each time. The first quarter, in which tasks start, does not count.
        repeats: Repetitions of each number of tasks.
        set_nodes: Called with the number of tasks before each measurement, to give the cluster as many CPUs; None to
            leave the cluster as it is.

    Returns:
        One result per source and number of tasks.

    Raises:
        UserError: A shard is missing or damaged, or a sample cannot be decoded.
    """
    config = resolve(config)
    config = with_demo_data(config)
    shards = list_shards(config)
    if set_nodes:
        set_nodes(max(tasks))
    else:
        start_ray(max(tasks), partial(print, file=sys.stderr))
    indexes = index_sources(config, shards)
    makers = {
        source.name: training_units(config, source, indexes[source.name].train) for source in config.sources
    }
    found = {(name, count): ReadThroughput(name, count, []) for name in makers for count in tasks}
    for _ in range(repeats):
        for (name, count), result in found.items():
            if set_nodes:
                set_nodes(count)
            data = replace(config.data, tasks=count)
            result.samples_per_second.append(_samples_per_second(makers[name], data, units))
    return list(found.values())


def _samples_per_second(maker: UnitMaker, data: DataConfig, units: int) -> float:
    # As on a rank: blocks of several units, prefetched in order.
    name, in_block = maker.source.name, units_per_block(maker.unit_bytes, open_blocks=2)
    blocks = BlockOrder(Schedule({name: 1.0}), 1, 0, units, {name: in_block})
    [shard] = unit_dataset({name: maker}, blocks, data).streaming_split(1, equal=True)
    stream = UnitStream(shard, torch.device("cpu"), prefetch=-(-data.prefetch_units // in_block))
    for number in range(units // 4):
        stream.take(name, number)
    started = time.perf_counter()
    for number in range(units // 4, units):
        stream.take(name, number)
    count = units - units // 4
    return count * maker.plan.unit_size / (time.perf_counter() - started)


class OneCpuNodes:
    """Ray cluster on this machine: a head without CPUs and a variable number of nodes with one CPU each."""

    def __init__(self) -> None:
        """Start the head and connect to it."""
        from ray.cluster_utils import Cluster

        # Cluster logs how to connect to it before `ray.init` can set the logging level.
        logging.getLogger("ray").setLevel(QUIET["logging_level"])
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes: list[Any] = []
        ray.init(address=self._cluster.address, **QUIET)

    def set(self, count: int) -> None:
        """Add or remove nodes until there are `count`.

        Args:
            count: Number of nodes, without the head.
        """
        while len(self._nodes) < count:
            self._nodes.append(self._cluster.add_node(num_cpus=1))
        while len(self._nodes) > count:
            self._cluster.remove_node(self._nodes.pop())
        self._cluster.wait_for_nodes()

    def close(self) -> None:
        """Stop all nodes."""
        ray.shutdown()
        self._cluster.shutdown()
