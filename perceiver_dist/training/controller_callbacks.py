"""Callbacks of Ray Train's controller: its heartbeat, and the choice of nodes for `train.leave_out_slow_nodes`."""

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback

from perceiver_dist.cluster.capacity import fits
from perceiver_dist.cluster.resources import Bundle
from perceiver_dist.training.liveness.heartbeat import start_controller_heartbeat
from perceiver_dist.training.tracker.handle import TrackerHandle


class ControllerHeartbeat(ControllerCallback):
    """Callback that reports the life of the controller's process to the tracker.

    Without the controller no lost worker is ever replaced.

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


class LeaveOutSlowNodes(ControllerCallback):
    """Callback that has workers started on other nodes than those that the tracker knows to be slow.

    If the others could not hold the workers, a slow node is better than none.

    Args:
        tracker: The `Tracker` actor.
    """

    def __init__(self, tracker: TrackerHandle) -> None:
        self._tracker = tracker

    def on_controller_start_worker_group(
        self, *, scaling_config: Any, num_workers: int
    ) -> dict[str, str] | None:
        """Return the label that the workers' nodes must have, and say which nodes are left out.

        Args:
            scaling_config: Ray Train's, with the resources of a worker.
            num_workers: How many workers are to start.
        """
        slow = ray.get(self._tracker.slow_nodes.remote())
        nodes: Any = ray.nodes  # Ray's function has no types.
        known = [node for node in nodes() if node["Alive"]]
        hosts = sorted(node["NodeManagerHostname"] for node in known if node["NodeID"] in slow)
        if not hosts:
            return None
        names = ", ".join(hosts)
        rest: list[Bundle] = [node["Resources"] for node in known if node["NodeID"] not in slow]
        worker: Bundle = scaling_config._resources_per_worker_not_none
        if not fits([worker] * num_workers, rest):
            self._tracker.report.remote(
                f"workers start on slow nodes too ({names}): the others cannot hold them"
            )
            return None
        self._tracker.report.remote(f"workers start without slow nodes ({names})")
        return {"ray.io/node-id": f"!in({','.join(sorted(slow))})"}
