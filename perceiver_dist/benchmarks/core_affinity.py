"""Cores of a measured run: the rank has one to itself, and everything else shares the others.

All processes of a run inherit the cores of the process that starts Ray. The rank is one of them; it is found by its
title and moved, thread by thread, because Linux keeps the cores of each thread.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from perceiver_dist.errors import InternalError, UserError

_TITLE = "ray::RayTrainWorker"
"""How the title of a Ray Train worker's process begins (Ray 2.60)."""
_SECONDS_BETWEEN_MOVES = 0.1
"""How often the rank's threads are moved, and its CPU time is read: a fraction of a percent of what is measured. A
thread that starts in between has the cores of the thread that started it."""


def split_cores() -> tuple[set[int], set[int]]:
    """Return one core for the rank, and all others.

    Raises:
        UserError: This process may use a single core.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise UserError(
            "this process may use 1 core; the benchmark needs 2, since readers get cores of their own"
        )
    return {first}, set(others)


@contextmanager
def rank_on_own_core(watch: Callable[[float], None]) -> Iterator[None]:
    """Keep this process and what it starts off the first core, except the Ray Train worker that runs meanwhile.

    Args:
        watch: Called in another thread every tenth of a second with the CPU time of the worker's process in seconds.

    Yields:
        Nothing; the worker is moved to the first core while it runs.

    Raises:
        UserError: This process may use a single core.
        InternalError: There was no such worker, so that nothing was moved.
    """
    own, others = split_cores()
    before = os.sched_getaffinity(0)
    ended, moved = threading.Event(), threading.Event()

    def move() -> None:
        rank = None
        while not ended.wait(_SECONDS_BETWEEN_MOVES):
            rank = rank or _find_rank()
            # Processes and threads end at any time.
            with suppress(psutil.Error, OSError):
                if rank is not None:
                    for thread in Path(f"/proc/{rank.pid}/task").iterdir():
                        os.sched_setaffinity(int(thread.name), own)
                    moved.set()
                    watch(_cpu_seconds(rank))

    mover = threading.Thread(target=move, daemon=True)
    os.sched_setaffinity(0, others)
    mover.start()
    try:
        yield
    finally:
        ended.set()
        mover.join()
        os.sched_setaffinity(0, before)
    if not moved.is_set():
        raise InternalError(
            f"no process whose title begins with '{_TITLE}' ran, so no rank had a core of its own"
        )


def _find_rank() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(_TITLE):
                return process
    return None


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
