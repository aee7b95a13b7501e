"""Entry point of a Ray Train worker. It imports little, because the driver and Ray Train's controller import it too."""

from dataclasses import dataclass

import ray
import ray.train

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.training.liveness.heartbeat import rank_heartbeat
from perceiver_dist.training.liveness.rank_state import RankState
from perceiver_dist.training.tracker.failures import failures_reported
from perceiver_dist.training.tracker.fenced import fenced
from perceiver_dist.training.tracker.handle import TrackerHandle


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
    start = ray.get(job.tracker.starting_point.remote())
    tracker = fenced(job.tracker, start.group)
    with failures_reported(tracker, state), rank_heartbeat(tracker, state, start.group):
        state.begin("loading libraries")
        # Imported here because the loop imports DeepSpeed, which takes seconds that only a worker needs to spend.
        from perceiver_dist.training.loop import train_rank

        train_rank(job.config, tracker, state, start)
