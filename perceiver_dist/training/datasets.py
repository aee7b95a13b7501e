"""Ray Datasets of a run: the units to train on, from the step where it starts, and the units to evaluate on."""

from collections.abc import Callable
from functools import partial

import ray
from ray.data import Dataset

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.shard_indexing import SourceData, evaluation_dataset
from perceiver_dist.errors import UserError
from perceiver_dist.training.tracker.handle import TrackerHandle
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig
from pipelines.units.plan import EvaluationPlan, TrainingPlan
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker


class TrainingGivenUpError(RuntimeError):
    """The workers failed too often without reaching another checkpoint."""


def make_datasets(
    config: RunConfig, data: dict[str, SourceData], tracker: TrackerHandle
) -> dict[str, Callable[[], Dataset]]:
    """Return a factory for each dataset. Ray Train's controller calls it at every start of a group of workers.

    Args:
        config: The resolved configuration.
        data: Indexed shards by source name.
        tracker: Knows the step to start from, and whether an error has ended the run for which a restart is no remedy.
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
    """Return the maker of a source's training units.

    Args:
        config: The resolved configuration.
        source: One of the run's sources.
        index: The source's indexed shards.
    """
    train = config.train
    plan = TrainingPlan(source.name, index.samples, train.micro_batch, config.data.chunk_size, train.seed)
    return UnitMaker(source, config.inputs(source), index, plan, config.data)


def _training_dataset(config: RunConfig, maker: UnitMaker, tracker: TrackerHandle) -> Dataset:
    status = ray.get(tracker.status.remote())
    # Ray Train restarts after every error; raising it again here ends the training instead.
    if status.user_error:
        raise UserError(status.user_error)
    schedule, train, name = Schedule(config.weights), config.train, maker.source.name
    start = ray.get(tracker.choose_starting_point.remote())
    # After the choice of the starting point, at whose step the start is counted.
    reason = ray.get(tracker.count_start.remote(name))
    if reason:
        raise TrainingGivenUpError(reason)
    stop = schedule.steps_before(name, train.steps) * train.lanes
    first = schedule.steps_before(name, start.step) * train.lanes
    # At least the units of one step, so that the dataset of a source that has no steps left is not empty.
    return unit_dataset(maker, min(first, stop - train.lanes), stop + _spare_units(config), config.data)


def _spare_units(config: RunConfig) -> int:
    """Return the number of extra units of a dataset.

    Ray splits a dataset equally, and drops units at the end if the ranks do not divide their number. As many extra
    units are added as may be dropped.
    """
    train = config.train
    divides = all(train.lanes % ranks == 0 for ranks in range(train.min_workers, train.max_workers + 1))
    return 0 if divides else train.max_workers - 1
