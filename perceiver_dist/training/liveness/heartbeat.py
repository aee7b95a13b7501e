"""Heartbeat of a process of a run: a thread that tells the tracker once a second what the process does.

A thread of its own, so that no step waits for a message. It needs Python's lock for a fraction of a millisecond. A
process that is stopped, or that keeps the lock for ever, falls silent; one that waits in a collective reports on, but
without progress. `perceiver_dist/training/liveness/hang.py` tells a hang from both.
"""

import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import ray
from ray.exceptions import RayError

from perceiver_dist.cluster.process_state import started_at
from perceiver_dist.cluster.remote_method import RemoteMethod
from perceiver_dist.training.liveness.collectives import last_collectives
from perceiver_dist.training.liveness.rank_state import RankState

_SECONDS_BETWEEN_BEATS = 1.0
"""Far below any bound of a hang; 64 ranks then send 64 messages a second, of which an actor takes thousands."""

_SECONDS_UNTIL_COLLECTIVES = 5.0
"""Below any sensible `train.hang_seconds`, and longer than nearly all steps: reading them takes milliseconds."""

STACKS_SIGNAL = signal.SIGUSR2
"""Signal at which a process writes the stacks of its threads. Ray, gloo and NCCL do not use it."""


@dataclass(frozen=True)
class Process:
    """A process of a run, for whoever has to end it.

    Attributes:
        node: Id of its Ray node.
        host: Name of its host.
        pid: Its process number.
        started: When it started, in ticks since the machine's start, since process numbers are used again.
        stacks: Number of the open file to which it writes the stacks of its threads at `STACKS_SIGNAL`.
    """

    node: str
    host: str
    pid: int
    started: int
    stacks: int


@dataclass(frozen=True)
class RankReport:
    """What a rank does.

    Attributes:
        group: Number of the rank's group of workers.
        state: Its state, a copy.
        idle_seconds: Time since its last progress, by its own clock.
        process: Its process.
        collectives: Its last collectives, a line each, if it makes no progress.
    """

    group: int
    state: RankState
    idle_seconds: float
    process: Process
    collectives: str = ""


class LivenessReceiver(Protocol):
    """Handle of the actor that receives heartbeats."""

    rank_lives: RemoteMethod[[RankReport], None]
    controller_lives: RemoteMethod[[], None]


def this_process() -> Process:
    """Return this process, and have it write its stacks at `STACKS_SIGNAL` from now on."""
    # A file in memory: others read it through /proc, it leaves nothing behind, and no disk can be full.
    file = os.memfd_create("stacks")
    # Written by the signal's handler in C, whatever the threads wait for.
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)
    pid = os.getpid()
    return Process(
        ray.get_runtime_context().get_node_id(), socket.gethostname(), pid, started_at(pid) or 0, file
    )


@contextmanager
def rank_heartbeat(tracker: LivenessReceiver, state: RankState, group: int) -> Iterator[None]:
    """Report what a rank does once a second, as long as the context is open.

    Args:
        tracker: The `Tracker` actor.
        state: State of the rank, read at each beat.
        group: Number of the rank's group of workers.

    Yields:
        Nothing.
    """
    process = this_process()
    progress, since, collectives = state.progress, monotonic(), ""

    def beat() -> None:
        nonlocal progress, since, collectives
        if state.progress != progress:
            progress, since, collectives = state.progress, monotonic(), ""
        idle = monotonic() - since
        if idle > _SECONDS_UNTIL_COLLECTIVES and not collectives:
            collectives = last_collectives()
        tracker.rank_lives.remote(RankReport(group, RankState(**vars(state)), idle, process, collectives))

    done = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(beat, done), daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def start_controller_heartbeat(tracker: LivenessReceiver) -> None:
    """Report once a second that this process lives, until it ends.

    Args:
        tracker: The `Tracker` actor.
    """
    threading.Thread(
        target=_beat_until, args=(tracker.controller_lives.remote, threading.Event()), daemon=True
    ).start()


def _beat_until(beat: Callable[[], object], done: threading.Event) -> None:
    while True:
        # A tracker that is gone is for others to notice.
        with suppress(RayError):
            beat()
        if done.wait(_SECONDS_BETWEEN_BEATS):
            return
