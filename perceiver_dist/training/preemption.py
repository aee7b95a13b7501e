"""How a run that is told to stop, or whose node is about to go, saves in time: all ranks agree on the step.

There are two kinds of notice. `ray job stop`, Kubernetes and a batch system send SIGTERM to the job's process and
SIGKILL some time later: the ranks save where they are and leave, and the same command goes on from there. A node that
Ray drains, as it does when a spot machine or a pod is to go, ends by itself: the ranks save and go on, so that losing
it costs the steps since then and nothing else.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import ray
import ray.train
import torch
from ray import ObjectRef
from torch import distributed

from perceiver_dist.training.tracker.handle import TrackerHandle

_SECONDS_BETWEEN_QUESTIONS = 0.25
_SECONDS_BETWEEN_LOOKS = 2.0
_NOTHING, _STOP, _LOOK = 0, 1, 2

StopRequest = Literal["", "save", "stop"]


@contextmanager
def forward_sigterm(tracker: TrackerHandle) -> Iterator[None]:
    """Pass SIGTERM on to the run instead of ending this process.

    Only a process's main thread is told of signals. In a trial of a search this does nothing; a search that is ended
    leaves its trials to go on from their last checkpoints.

    Args:
        tracker: The `Tracker` actor.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: tracker.preempt.remote())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignal:
    """Tells every rank after the same optimizer step what to do. Each rank makes one, at the same time.

    Rank 0 asks the tracker four times a second, without waiting for the answer, whether the run is to stop. What it
    knows is broadcast every step, over CPUs, so that no device has to be waited for. Every two seconds it is broadcast
    that all look for draining nodes: Ray Train answers that question to all ranks together only.

    Args:
        tracker: The `Tracker` actor.
    """

    def __init__(self, tracker: TrackerHandle) -> None:
        self.group: Any = distributed.new_group(backend="gloo")
        self._tracker = tracker
        self._question: ObjectRef[bool] | None = None
        self._asked_at = float("-inf")
        self._looked_at = time.monotonic()
        self._stop = False
        self._draining: set[str] = set()

    def poll(self) -> StopRequest:
        """Return what is to be done now: the same on every rank, all of which must call this every step.

        Returns:
            "stop" to save and leave, "save" to save and go on, "" for nothing.
        """
        flag = torch.tensor([self._known() if distributed.get_rank() == 0 else _NOTHING])
        distributed.broadcast(flag, src=0, group=self.group)
        if flag.item() == _STOP:
            return "stop"
        return "save" if flag.item() == _LOOK and self._another_node_drains() else ""

    def _known(self) -> int:
        self._ask()
        if self._stop:
            return _STOP
        if time.monotonic() - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at = time.monotonic()
            return _LOOK
        return _NOTHING

    def _ask(self) -> None:
        if self._question is None:
            if time.monotonic() - self._asked_at >= _SECONDS_BETWEEN_QUESTIONS:
                self._asked_at = time.monotonic()
                self._question = self._tracker.is_preempted.remote()
        elif ray.wait([self._question], timeout=0)[0]:
            self._stop = ray.get(self._question)
            self._question = None

    def _another_node_drains(self) -> bool:
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new = nodes - self._draining
        self._draining |= nodes
        return bool(new)
