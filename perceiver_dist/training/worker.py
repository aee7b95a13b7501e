"""Entry point of a Ray Train worker. It imports little, because the driver and Ray Train's controller import it too."""

from dataclasses import dataclass

import ray.train

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.training.tracker.failures import failures_reported
from perceiver_dist.training.tracker.handle import TrackerHandle
from perceiver_dist.training.tracker.rank_state import RankState


@dataclass(frozen=True)
class WorkerJob:
    """Arguments of every worker.

    Attributes:
        config: The run's resolved configuration.
        tracker: The `Tracker` actor.
    """

    config: RunConfig
    tracker: TrackerHandle


def train_worker(job: WorkerJob) -> None:
    """Train as one rank of a group of Ray Train workers, and report any error to the tracker.

    Args:
        job: Configuration and tracker.
    """
    state = RankState(ray.train.get_context().get_world_rank())
    with failures_reported(job.tracker, state):
        job.tracker.rank_starts.remote(state.rank, "loading libraries")
        # Imported here because the loop imports DeepSpeed, which takes seconds that only a worker needs to spend.
        from perceiver_dist.training.loop import train_rank

        train_rank(job.config, job.tracker, state)
