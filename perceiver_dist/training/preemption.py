"""Preemption: a run that is stopped, or that loses a node, saves in time, with all ranks at the same step.

There are two kinds of notice. `ray job stop`, Kubernetes and batch systems send SIGTERM to the job's process, and
SIGKILL some time later: the ranks save and exit, and the same command resumes there
(`perceiver_dist/cluster/termination.py`). A node that Ray drains, because a
spot machine or a pod is about to be removed, ends by itself: the ranks save and continue, so that losing the node costs
only the steps since then.
"""

import time
from datetime import timedelta
from typing import Any, Literal

import ray
import ray.train
import torch
from ray import ObjectRef
from torch import distributed

from perceiver_dist.training.tracker.handle import TrackerHandle

_SECONDS_BETWEEN_REQUESTS = 0.25
"""How often rank 0 asks the tracker whether to stop. The usual grace period after SIGTERM is 3 seconds or more
(`RAY_JOB_STOP_WAIT_TIME_S`), most of which saving needs."""
_SECONDS_BETWEEN_CHECKS = 2.0
"""How often all ranks check for draining nodes. Each check is a request to Ray Train by every rank; the clouds
announce the end of a spot machine about 30 seconds or 2 minutes before."""
_NOTHING, _STOP, _CHECK_NODES = 0, 1, 2
"""What rank 0 broadcasts at every step."""

StopRequest = Literal["", "save", "stop"]


class StopSignal:
    """Stop and save requests, seen by every rank after the same optimizer step. All ranks create it together.

    Rank 0 asks the tracker four times a second whether to stop, without waiting for the answer. It broadcasts what it
    knows at every step, with gloo on CPUs, so that no rank waits for its GPU. Every two seconds it broadcasts that all
    ranks check for draining nodes, because Ray Train answers that only to all ranks together.

    Args:
        tracker: The `Tracker` actor.
        timeout: Seconds until a broadcast fails.
    """

    def __init__(self, tracker: TrackerHandle, timeout: float) -> None:
        # On CPUs, next to the default group: a broadcast with NCCL would wait for the GPU at every step.
        self.group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._tracker = tracker
        self._request: ObjectRef[bool] | None = None
        self._requested_at = float("-inf")
        self._checked_at = time.monotonic()
        self._stop = False
        self._draining: set[str] = set()

    def poll(self) -> StopRequest:
        """Return the request of this step, the same on every rank. Every rank must call this at every step.

        Returns:
            "stop" to save and exit, "save" to save and continue, "" for no request.
        """
        flag = torch.tensor([self._known() if distributed.get_rank() == 0 else _NOTHING])
        distributed.broadcast(flag, src=0, group=self.group)
        if flag.item() == _STOP:
            return "stop"
        return "save" if flag.item() == _CHECK_NODES and self._new_node_is_draining() else ""

    def _known(self) -> int:
        self._ask()
        if self._stop:
            return _STOP
        if time.monotonic() - self._checked_at >= _SECONDS_BETWEEN_CHECKS:
            self._checked_at = time.monotonic()
            return _CHECK_NODES
        return _NOTHING

    def _ask(self) -> None:
        # At most one request at a time, and never waited for: a step must not depend on the tracker.
        if self._request is None:
            if time.monotonic() - self._requested_at >= _SECONDS_BETWEEN_REQUESTS:
                self._requested_at = time.monotonic()
                self._request = self._tracker.is_preempted.remote()
        elif ray.wait([self._request], timeout=0)[0]:
            self._stop = ray.get(self._request)
            self._request = None

    def _new_node_is_draining(self) -> bool:
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        # Each node causes one save only; it stays in the list until it is gone.
        new = nodes - self._draining
        self._draining |= nodes
        return bool(new)
