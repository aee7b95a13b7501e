"""Heartbeat of Ray Train's controller, which starts workers, and without which a lost one is never replaced."""

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback

from perceiver_dist.training.liveness.heartbeat import start_controller_heartbeat
from perceiver_dist.training.tracker.handle import TrackerHandle


class ControllerHeartbeat(ControllerCallback):
    """Callback that reports the life of the controller's process to the tracker.

    Args:
        tracker: The `Tracker` actor.
    """

    def __init__(self, tracker: TrackerHandle) -> None:
        self._tracker = tracker

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        """Start the heartbeat.

        Args:
            train_run_context: Ray Train's description of the run.
        """
        start_controller_heartbeat(self._tracker)
