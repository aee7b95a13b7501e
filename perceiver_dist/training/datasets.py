"""From a run's configuration to its Ray Datasets: shards are listed, indexed, planned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.data import Dataset

from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.training.checkpoint_list import StartingPoint
from perceiver_dist.training.news import News
from pipelines.datasource import unit_dataset
from pipelines.index import SourceIndex, index_shard
from pipelines.plan import EvaluationPlan, TrainingPlan
from pipelines.schedule import Schedule
from pipelines.source import SourceConfig
from pipelines.storage import expand_shards
from pipelines.units import UnitMaker


class TrainingGivenUpError(RuntimeError):
    """The workers failed too often without reaching another checkpoint."""


@dataclass(frozen=True)
class SourceData:
    """The indexed shards of one source.

    Attributes:
        train: Shards to learn from.
        evaluation: Held-out shards; None if the source names none.
    """

    train: SourceIndex
    evaluation: SourceIndex | None


def list_shards(config: RunConfig) -> dict[str, list[str]]:
    """Return the shards of every source and evaluation dataset by dataset name, without opening them.

    Args:
        config: The resolved configuration.

    Raises:
        ShardError: A pattern matches nothing.
    """
    shards: dict[str, list[str]] = {}
    for source in config.sources:
        shards[source.name] = expand_shards(source.train_shards, source.name)
        if source.eval_shards:
            shards[evaluation_dataset(source)] = expand_shards(source.eval_shards, source.name)
    return shards


def index_sources(config: RunConfig, shards: dict[str, list[str]]) -> dict[str, SourceData]:
    """Index all shards on the cluster, those known already at no cost.

    Args:
        config: The resolved configuration.
        shards: From `list_shards`.

    Returns:
        The indexed shards by source name.

    Raises:
        UserError: A shard is missing, damaged or empty; the first such shard is named.
    """
    indexes = index_shards(shards, config.index_folder, config.data.storage_seconds)
    return {
        source.name: SourceData(indexes[source.name], indexes.get(evaluation_dataset(source)))
        for source in config.sources
    }


def index_shards(
    shards: Mapping[str, Sequence[str]], index_folder: str, storage_seconds: float
) -> dict[str, SourceIndex]:
    """Index shards on the cluster, those known already at no cost.

    Args:
        shards: Paths or URIs of tar files, by any name.
        index_folder: Path or URI of the folder that index files are kept in.
        storage_seconds: How long remote storage that fails is asked.

    Returns:
        The indexed shards by the same names.

    Raises:
        UserError: A shard is missing, damaged or empty; the first such shard is named.
    """
    # "SPREAD" also keeps the tasks out of the placement group of a search's trial, which has no CPUs to spare.
    task: Any = ray.remote(index_shard).options(scheduling_strategy="SPREAD")
    pending = {
        name: [task.remote(uri, index_folder, storage_seconds) for uri in uris]
        for name, uris in shards.items()
    }
    try:
        # One by one, so that of several bad shards the first is named, not the one that was found first.
        return {
            name: SourceIndex(ray.get(reference) for reference in references)
            for name, references in pending.items()
        }
    except UserError as error:
        raise UserError(str(getattr(error, "cause", error))) from None


def make_datasets(
    config: RunConfig, data: dict[str, SourceData], tracker: Any
) -> dict[str, Callable[[], Dataset]]:
    """Return a function per dataset that Ray Train calls in its controller at each start of a worker group.

    Args:
        config: The resolved configuration.
        data: Indexed shards by source name.
        tracker: Asked which step to begin with, and whether the run has stopped for an error that a restart cannot
            mend.
    """
    datasets: dict[str, Callable[[], Dataset]] = {}
    schedule = Schedule(config.weights)
    for source in config.sources:
        train = config.train
        maker = training_units(config, source, data[source.name].train)
        if schedule.steps_before(source.name, train.steps):
            datasets[source.name] = partial(_training_dataset, config, maker, tracker)
        held_out = data[source.name].evaluation
        if held_out is not None:
            every = EvaluationPlan(held_out.samples, train.micro_batch, train.lanes, _spare_units(config))
            evaluator = UnitMaker(source, maker.inputs, held_out, every, config.data)
            datasets[evaluation_dataset(source)] = partial(
                unit_dataset, evaluator, 0, every.units, config.data
            )
    return datasets


def training_units(config: RunConfig, source: SourceConfig, index: SourceIndex) -> UnitMaker:
    """Return what makes the units that a run learns from.

    Args:
        config: The resolved configuration.
        source: One of its sources.
        index: The source's indexed shards.
    """
    train = config.train
    plan = TrainingPlan(source.name, index.samples, train.micro_batch, config.data.chunk_size, train.seed)
    return UnitMaker(source, config.inputs(source), index, plan, config.data)


def _training_dataset(config: RunConfig, maker: UnitMaker, tracker: Any) -> Dataset:
    news: News = ray.get(tracker.news.remote())
    if news.user_error:
        raise UserError(news.user_error)
    schedule, train, name = Schedule(config.weights), config.train, maker.source.name
    start: StartingPoint = ray.get(tracker.choose_starting_point.remote())
    refusal = ray.get(tracker.count_start.remote(name))
    if refusal:
        raise TrainingGivenUpError(refusal)
    stop = schedule.steps_before(name, train.steps) * train.lanes
    first = schedule.steps_before(name, start.step) * train.lanes
    return unit_dataset(maker, min(first, stop - train.lanes), stop + _spare_units(config), config.data)


def _spare_units(config: RunConfig) -> int:
    """Return how many units more a dataset gets: an equal split drops at the end what the ranks do not divide."""
    train = config.train
    divides = all(train.lanes % ranks == 0 for ranks in range(train.least_workers, train.most_workers + 1))
    return 0 if divides else train.most_workers - 1


def evaluation_dataset(source: SourceConfig) -> str:
    """Return the name under which a source's held-out units are handed to Ray Train.

    Args:
        source: The source.
    """
    return f"{source.name}-eval"
