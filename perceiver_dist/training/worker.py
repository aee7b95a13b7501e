"""What Ray Train starts on every worker; light, since the driver and Ray Train's controller import it as well."""

from dataclasses import dataclass

import ray.train

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.training.tracker.failures import RankState, failures_reported
from perceiver_dist.training.tracker.handle import TrackerHandle


@dataclass(frozen=True)
class WorkerJob:
    """What every worker is started with.

    Attributes:
        config: The run's resolved configuration.
        tracker: The `Tracker` actor.
    """

    config: RunConfig
    tracker: TrackerHandle


def train_worker(job: WorkerJob) -> None:
    """Train as one rank of a group of Ray Train workers; the tracker hears of whatever ends it.

    Args:
        job: Configuration and tracker.
    """
    state = RankState(ray.train.get_context().get_world_rank())
    with failures_reported(job.tracker, state):
        # Here and not above: the loop imports DeepSpeed, seconds that only a worker has to spend.
        from perceiver_dist.training.loop import train_rank

        train_rank(job.config, job.tracker, state)
