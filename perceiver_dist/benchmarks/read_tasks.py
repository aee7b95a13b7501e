"""How fast samples are read and decoded, by the number of read tasks: what tells how many CPUs a run needs for it."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import ray

from perceiver_dist.benchmarks import DEFAULT_CONFIG
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.cluster.connect import QUIET, start_ray
from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.shard_indexing import index_sources, list_shards
from perceiver_dist.errors import UserError
from perceiver_dist.training.datasets import training_units
from perceiver_dist.training.driver import resolve
from pipelines.demo.resolve import resolve_demo
from pipelines.shards.source import DataConfig
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker


@dataclass(frozen=True)
class Ingest:
    """What was measured of one source.

    Attributes:
        source: Name of the source.
        tasks: Read tasks at a time, each on one CPU.
        samples_per_second: One figure for each repetition.
    """

    source: str
    tasks: int
    samples_per_second: list[float]

    @property
    def median(self) -> float:
        """Samples per second."""
        return median(self.samples_per_second)


def measure_read_tasks(
    config: str = DEFAULT_CONFIG,
    tasks: list[int] | None = None,
    units: int = 256,
    repeats: int = 3,
    one_cpu_nodes: bool = False,
) -> ResultTable:
    """Measure how fast a run's samples are read and decoded, by the number of read tasks.

    Args:
        config: YAML file of a run.
        tasks: Numbers of read tasks to try; by default 1 and 2.
        units: Units to read each time; many more than data.units_per_task, since the last tasks run alone.
        repeats: Times that each number is tried.
        one_cpu_nodes: Try it on a cluster started here, with as many CPU-only nodes of one CPU as there are tasks.

    Raises:
        UserError: An option is not as it must be, a shard is missing or damaged, or a sample cannot be decoded.
    """
    tasks = tasks or [1, 2]
    if min(*tasks, repeats) < 1 or units < 4:
        raise UserError("--tasks and --repeats must be at least 1, --units at least 4")
    run, _ = parse_run(run_parser(""), ["--config", config], [], RunConfig)
    nodes = OneCpuNodes() if one_cpu_nodes else None
    try:
        found = measure_ingest(run, tasks, units, repeats, nodes.set if nodes else None)
    finally:
        if nodes:
            nodes.close()
    first = {ingest.source: ingest.median for ingest in reversed(found)}
    rows = []
    for ingest in found:
        rates = (ingest.median, min(ingest.samples_per_second), max(ingest.samples_per_second))
        ratio = ingest.median / first[ingest.source]
        rows.append([ingest.source, str(ingest.tasks), *(f"{rate:,.0f}" for rate in rates), f"{ratio:.2f}"])
    unit = "nodes" if one_cpu_nodes else "tasks"
    return ResultTable(("source", unit, "samples/s", "least", "most", "ratio"), rows)


def measure_ingest(
    config: RunConfig,
    tasks: Sequence[int],
    units: int,
    repeats: int,
    set_nodes: Callable[[int], None] | None = None,
) -> list[Ingest]:
    """Read units of every source as training would, with nobody learning from them.

    Repetitions go through all numbers of tasks in turn, so that a machine whose speed drifts is fair to each.

    Args:
        config: A run's configuration.
        tasks: Numbers of read tasks to try.
        units: Units to read each time; the first quarter is not counted, in which tasks start.
        repeats: Times that each number is tried.
        set_nodes: Called with the number of tasks before each try, to give the cluster as many CPUs; None leaves it.

    Returns:
        A result for each source and number of tasks.

    Raises:
        UserError: A shard is missing or damaged, or a sample cannot be decoded.
    """
    config = resolve(config)
    config = replace(config, sources=[resolve_demo(source, config.storage.path) for source in config.sources])
    shards = list_shards(config)
    if set_nodes:
        set_nodes(max(tasks))
    else:
        start_ray(max(tasks))
    indexes = index_sources(config, shards)
    makers = {
        source.name: training_units(config, source, indexes[source.name].train) for source in config.sources
    }
    found = {(name, count): Ingest(name, count, []) for name in makers for count in tasks}
    for _ in range(repeats):
        for (name, count), ingest in found.items():
            if set_nodes:
                set_nodes(count)
            data = replace(config.data, tasks=count)
            ingest.samples_per_second.append(_samples_per_second(makers[name], data, units))
    return list(found.values())


def _samples_per_second(maker: UnitMaker, data: DataConfig, units: int) -> float:
    [stream] = unit_dataset(maker, 0, units, data).streaming_split(1, equal=True)
    rows = iter(stream.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=data.prefetch_units))
    for _ in range(units // 4):
        next(rows)
    began = time.perf_counter()
    count = sum(1 for _ in rows)
    return count * maker.plan.unit_size / (time.perf_counter() - began)


class OneCpuNodes:
    """A cluster on this machine whose head has no CPUs, and which has as many nodes of one CPU as it is told."""

    def __init__(self) -> None:
        """Start the head and connect to it."""
        from ray.cluster_utils import Cluster

        # Ray would tell that `ray.init` now finds this cluster, before it is told to be quiet.
        logging.getLogger("ray").setLevel(QUIET["logging_level"])
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes: list[Any] = []
        ray.init(address=self._cluster.address, **QUIET)

    def set(self, count: int) -> None:
        """Add or remove nodes until there are so many.

        Args:
            count: Nodes beside the head.
        """
        while len(self._nodes) < count:
            self._nodes.append(self._cluster.add_node(num_cpus=1))
        while len(self._nodes) > count:
            self._cluster.remove_node(self._nodes.pop())
        self._cluster.wait_for_nodes()

    def close(self) -> None:
        """End all nodes."""
        ray.shutdown()
        self._cluster.shutdown()
