"""End of hung processes, on their own nodes, after their stacks have been read."""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perceiver_dist.cluster.process_state import is_stopped, started_at
from perceiver_dist.training.liveness.heartbeat import STACKS_SIGNAL, Process

_SECONDS_FOR_STACKS = 2.0
"""A signal is handled within a millisecond; the kernel may hold a process in a driver's call for longer."""
_SECONDS_FOR_NODES = 15.0
"""How long to wait for tasks on the nodes. A node that does not answer is Ray's to give up, with all its processes."""


def end_processes(processes: Iterable[tuple[str, Process]]) -> Mapping[str, str]:
    """Read the stacks of processes and kill them, with a task on each one's node.

    Args:
        processes: Name, such as "rank 1", and process.

    Returns:
        Text about each process by its name; of one whose node does not answer, a line that says so.
    """
    tasks: dict[Any, str] = {}
    texts: dict[str, str] = {}
    for name, process in processes:
        node = NodeAffinitySchedulingStrategy(process.node, soft=False)
        task = ray.remote(_end_process).options(num_cpus=0, max_retries=0, scheduling_strategy=node)
        tasks[task.remote(process)] = name
        texts[name] = f"its node ({process.host}) did not answer within {_SECONDS_FOR_NODES:.0f} s\n"
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=_SECONDS_FOR_NODES)
    for answer in done:
        with suppress(RayError):
            texts[tasks[answer]] = ray.get(answer)
    return texts


def stacks_of(process: Process) -> str:
    """Return the stacks of a process of this machine, or why there are none.

    Args:
        process: The process.
    """
    if started_at(process.pid) != process.started:
        return "has ended\n"
    if is_stopped(process.pid):
        return "is stopped (by SIGSTOP or a debugger), and can show no stacks\n"
    file = Path(f"/proc/{process.pid}/fd/{process.stacks}")
    try:
        before = len(file.read_bytes())
        os.kill(process.pid, STACKS_SIGNAL)
        return _when_complete(file, before) or "showed no stacks\n"
    except OSError as error:
        return f"its stacks cannot be read ({error})\n"


def _when_complete(file: Path, before: int) -> str:
    """Return what was appended to a file, once that has stopped growing."""
    until, size = time.monotonic() + _SECONDS_FOR_STACKS, before
    while time.monotonic() < until:
        time.sleep(0.1)
        text = file.read_bytes()
        if len(text) == size > before:
            break
        size = len(text)
    return file.read_bytes()[before:].decode(errors="replace")


def _end_process(process: Process) -> str:
    text = stacks_of(process)
    if started_at(process.pid) == process.started:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return text
