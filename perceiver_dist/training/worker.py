"""What Ray Train starts on every worker; light, since the driver and Ray Train's controller import it as well."""

from dataclasses import dataclass
from typing import Any

from perceiver_dist.config import RunConfig


@dataclass(frozen=True)
class Job:
    """What every worker is started with.

    Attributes:
        config: The run's resolved configuration.
        tracker: The `Tracker` actor.
    """

    config: RunConfig
    tracker: Any


def train_worker(job: Job) -> None:
    """Train as one rank of a group of Ray Train workers.

    Args:
        job: Configuration and tracker.
    """
    # Here and not above: the loop imports DeepSpeed and torchmetrics, seconds that only a worker has to spend.
    from perceiver_dist.training.loop import train_rank

    train_rank(job)
