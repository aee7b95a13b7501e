"""Ray Datasets of a run: the units to train on, from the step where it starts, and the units to evaluate on.

One dataset has the units of all sources to train on, in the order in which the schedule needs them. So the sources
share one executor of Ray Data, its readers and its memory, without anything to be divided among them.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import ray
import ray.train
from ray.data import Dataset, ExecutionOptions, ExecutionResources

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.reading_memory import block_units, object_store_limit
from perceiver_dist.data.shard_indexing import SourceData, evaluation_dataset
from perceiver_dist.errors import UserError
from perceiver_dist.training.tracker.handle import TrackerHandle
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig
from pipelines.units.balanced_plan import BalancedPlan, ClassDraws
from pipelines.units.block_order import BlockOrder, SingleUnits, UnitBlock
from pipelines.units.class_numbers import class_numbers
from pipelines.units.plan import EvaluationPlan, TrainingPlan
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker

TRAINING_DATASET = "train"
"""Name of the Ray Train dataset with the training units of all sources; others end in "-eval"."""


class TrainingGivenUpError(RuntimeError):
    """The workers failed too often without reaching another checkpoint."""


def training_makers(config: RunConfig, data: Mapping[str, SourceData]) -> dict[str, UnitMaker]:
    """Return the maker of each source's training units.

    Args:
        config: The resolved configuration.
        data: Indexed shards by source name.

    Raises:
        ShardError: A source is balanced, and its labels cannot be told apart or storage fails.
    """
    return {source.name: training_units(config, source, data[source.name].train) for source in config.sources}


def make_datasets(
    config: RunConfig, data: Mapping[str, SourceData], makers: dict[str, UnitMaker], tracker: TrackerHandle
) -> dict[str, Callable[[], Dataset]]:
    """Return a factory for each dataset. Ray Train's controller calls it at every start of a group of workers.

    Args:
        config: The resolved configuration.
        data: Indexed shards by source name.
        makers: From `training_makers`.
        tracker: Knows the step to start from, and whether an error has ended the run for which a restart is no remedy.
    """
    datasets: dict[str, Callable[[], Dataset]] = {
        TRAINING_DATASET: partial(_training_dataset, config, makers, tracker)
    }
    for source in config.sources:
        held_out = data[source.name].evaluation
        if held_out is not None:
            train = config.train
            plan = EvaluationPlan(held_out.samples, train.micro_batch, train.lanes, _spare_blocks(config))
            maker = UnitMaker(source, config.inputs(source), held_out, plan, config.data)
            datasets[evaluation_dataset(source)] = partial(_evaluation_dataset, config, maker, plan.units)
    return datasets


def training_units(config: RunConfig, source: SourceConfig, index: SourceIndex) -> UnitMaker:
    """Return the maker of a source's training units.

    Args:
        config: The resolved configuration.
        source: One of the run's sources.
        index: The source's indexed shards.

    Raises:
        ShardError: The source is balanced, and its labels cannot be told apart or storage fails.
    """
    train = config.train
    plan = TrainingPlan(source.name, index.samples, train.micro_batch, config.data.chunk_size, train.seed)
    if source.balance:
        draws = ClassDraws(class_numbers(index, source, config.data), source.balance)
        plan = BalancedPlan.of(source.name, draws, train.micro_batch, train.seed)
    return UnitMaker(source, config.inputs(source), index, plan, config.data)


def block_order(config: RunConfig, start: int) -> BlockOrder:
    """Return the order of the blocks of a run's training dataset.

    Args:
        config: The resolved configuration.
        start: Optimizer step from which the run is resumed.
    """
    train = config.train
    # At least one step, so that the dataset of a run that has no steps left is not empty.
    first = min(start, train.steps - 1)
    largest = {source.name: block_units(config, source, len(config.sources)) for source in config.sources}
    return BlockOrder(
        Schedule(config.weights), train.lanes, first, train.steps, largest, spare=_spare_blocks(config)
    )


class ReadingOptions(ray.train.DataConfig):
    """Ray Data's options for the datasets of a run, decided at every start of its workers.

    With `data.tasks` auto, reading takes what the workers leave of the cluster as it is at that moment. Ray Data shares
    it equally with the trainings and evaluations that read at the same time. The number is a limit, too, because Ray
    Data asks an autoscaler for more CPUs when its readers or its memory are busy, even if training needs nothing more.

    Args:
        config: The resolved configuration.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def configure(self, datasets: dict[str, Dataset], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """Split datasets among the workers; called by Ray Train.

        Args:
            datasets: Datasets by name.
            world_size: Number of workers.
            args: Other arguments of Ray's interface.
            kwargs: Other arguments of Ray's interface.
        """
        self._user_execution_options = {
            name: reading_options(self._config, world_size, name == TRAINING_DATASET) for name in datasets
        }
        return super().configure(datasets, world_size, *args, **kwargs)


def reading_options(config: RunConfig, world_size: int, training: bool) -> ExecutionOptions:
    """Return Ray Data's options for a dataset. Ray must be running.

    Args:
        config: The resolved configuration.
        world_size: Number of workers.
        training: Whether it is the training dataset, which leaves a CPU to evaluations: its readers keep theirs while
            they wait for a rank that evaluates.
    """
    resources: Any = ray.cluster_resources
    if config.data.tasks == "auto":
        left = int(resources().get("CPU", 0) - world_size * config.train.cpus_per_worker)
        evaluates = any(source.eval_shards for source in config.sources)
        readers = max(left - (training and evaluates), 1)
    else:
        readers = config.data.tasks
    memory = object_store_limit(config, readers)
    limits = ExecutionResources.for_limits(cpu=readers, object_store_memory=memory)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


def _training_dataset(config: RunConfig, makers: dict[str, UnitMaker], tracker: TrackerHandle) -> Dataset:
    status = ray.get(tracker.status.remote())
    # Ray Train restarts after every error; raising it again here ends the training instead.
    if status.user_error:
        raise UserError(status.user_error)
    start = ray.get(tracker.choose_starting_point.remote())
    # After the choice of the starting point, at whose step the start is counted.
    reason = ray.get(tracker.count_start.remote())
    if reason:
        raise TrainingGivenUpError(reason)
    return unit_dataset(makers, block_order(config, start.step), config.data)


def _evaluation_dataset(config: RunConfig, maker: UnitMaker, units: int) -> Dataset:
    train, name = config.train, maker.source.name
    blocks: Iterable[UnitBlock] = SingleUnits(name, 0, units)
    if not _spare_blocks(config):
        # Every rank gets the same number of units, since it has the same number of lanes.
        steps = units // train.lanes
        largest = {name: block_units(config, maker.source, sources=1)}
        blocks = BlockOrder(Schedule({name: 1.0}), train.lanes, 0, steps, largest)
    return unit_dataset({name: maker}, blocks, config.data)


def _spare_blocks(config: RunConfig) -> int:
    """Return the number of extra blocks of a dataset.

    Ray splits a dataset equally, and drops blocks at the end if the ranks do not divide their number. As many extra
    blocks are added as may be dropped.
    """
    train = config.train
    divides = all(train.lanes % ranks == 0 for ranks in range(train.min_workers, train.max_workers + 1))
    return 0 if divides else train.max_workers - 1
