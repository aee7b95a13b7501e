"""How a run that is told to stop ends with a checkpoint: the driver passes the notice on, the ranks agree on a step.

`ray job stop`, Kubernetes and a batch system send SIGTERM to the job's process and SIGKILL some time later. In between
the ranks save where they are and leave; the same command goes on from there.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from torch import distributed

_SECONDS_BETWEEN_QUESTIONS = 0.25


@contextmanager
def sigterm_is_a_notice(tracker: Any) -> Iterator[None]:
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


class PreemptionNotice:
    """Tells every rank after the same optimizer step that the run is to stop. Each rank makes one, at the same time.

    Rank 0 asks the tracker four times a second, without waiting for the answer. What it knows is broadcast every
    step, over CPUs, so that no device has to be waited for.

    Args:
        tracker: The `Tracker` actor.
    """

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker
        self._group: Any = distributed.new_group(backend="gloo")
        self._question: Any = None
        self._asked_at = float("-inf")
        self._known = False

    def given(self) -> bool:
        """Return whether the run is to stop now: the same on every rank, all of which must call this every step."""
        if distributed.get_rank() == 0:
            self._ask()
        flag = torch.tensor([self._known])
        distributed.broadcast(flag, src=0, group=self._group)
        return bool(flag.item())

    def _ask(self) -> None:
        if self._question is None:
            if time.monotonic() - self._asked_at >= _SECONDS_BETWEEN_QUESTIONS:
                self._asked_at = time.monotonic()
                self._question = self._tracker.is_preempted.remote()
        elif ray.wait([self._question], timeout=0)[0]:
            self._known = ray.get(self._question)
            self._question = None
