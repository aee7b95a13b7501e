"""SIGTERM, when everybody gets it at once: timeout(1), batch systems, systemd and pods signal all processes of a job.

A terminal that is closed does the same with SIGHUP; what is said of SIGTERM here holds for both. Without precautions
Ray ends before the run has saved: its processes are in the process group of the one that starts it, or in its control
group. Therefore all processes of a Ray that a job starts here, and its workers, start with both signals blocked
(`perceiver_dist/termination_signals.py`). The mask survives fork and exec, so it holds for whatever they start. Only
the job's process acts on the signal; it asks the ranks to save, and ends Ray afterwards.

A Ray may end nevertheless: a cluster whose nodes got the signal too, or processes that were killed. Its client library
then waits a minute for the lost server and ends the process with an error of its own. `TerminationWatch` notices, and
interrupts the main thread.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import psutil
import ray
from ray._private import ray_constants

from perceiver_dist.termination_signals import handled_signals

_SECONDS_BETWEEN_CHECKS = 0.5
"""How often to check for the end of Ray: little work, and short beside the seconds in which a job is to end."""
_WAKE = signal.SIGRTMIN
"""Signal by which the watching thread interrupts the main thread. Its number is above SIGTERM's, so that Python
first calls the handler of a SIGTERM that arrived at the same time."""
_SECONDS_OF_RAYS_END = 5.0
"""How long the processes of Ray take to end after SIGTERM; its workers are the first to go."""
_CONNECT_SECONDS = 5.0
"""Time for a cluster to accept a connection. Only a refusal counts as its end, not silence."""
_LEFT = "TRAINING_LEFT_RAY"
"""Environment variable with the processes of the Ray that a process has left. PERCEIVER_ is the prefix of options."""
_HANGS = "TRAINING_HANGS"
"""Environment variable with how often a job has begun anew."""


class RayEndedError(Exception):
    """The Ray that this process uses has ended, so nothing that runs there can be reached."""


class EndedEarlyError(Exception):
    """The job was told to end when it had nothing to save."""


def end_ray_by_sigkill() -> None:
    """Let Ray's own shutdown end the processes that it started by SIGKILL, since they do not get its SIGTERM."""
    for started in own_processes():
        # A method of this object only. Ray would wait for a second for each process, and kill it then.
        setattr(started, "terminate", partial(_kill_family, started.pid))  # noqa: B010


def end_children(others: Collection[psutil.Process]) -> None:
    """Kill the children of this process and theirs, except some: what is left of a Ray that did not start.

    Args:
        others: Children that are kept.
    """
    for child in psutil.Process().children():
        if child not in others:
            _kill_family(child.pid)
            child.wait()


def _kill_family(pid: int) -> None:
    """Kill a child of this process and its children: the agents of a raylet would look for its server for a minute."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (*process.children(), process):
            with suppress(psutil.NoSuchProcess):
                member.kill()


def begin_anew() -> NoReturn:
    """Replace this process by a new one with the same command, as after a kill of everything.

    For a Ray in which something hangs. Nothing ends it within this process: Ray's shutdown waits for an answer of the
    raylet, which may be what hangs; and when raylet or server are killed, the client library ends this process, at once
    or a minute later.
    """
    worker: Any = ray._private.worker
    started = worker._global_node.all_processes if worker._global_node else {}
    os.environ[_LEFT] = " ".join(str(info.process.pid) for kind in started.values() for info in kind)
    os.environ[_HANGS] = str(hangs_before() + 1)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 # this process's own command


def hangs_before() -> int:
    """Return how often this job has begun anew (`begin_anew`)."""
    return int(os.environ.get(_HANGS, "0"))


def end_left_ray() -> None:
    """Kill what `begin_anew` has left of a Ray, if this process has begun so."""
    for pid in map(int, os.environ.pop(_LEFT, "").split()):
        # They are children of this process, so nobody else can have got the number.
        _kill_family(pid)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def node_is_lost() -> bool:
    """Return whether the server of a Ray that this process has started gave up its node: the raylet did not answer."""
    nodes: Any = ray.nodes  # Ray leaves it without types
    return bool(own_processes()) and not any(node["Alive"] for node in nodes())


def ray_has_ended(asks_cluster: bool) -> bool:
    """Return whether the Ray that this process uses has ended.

    Args:
        asks_cluster: Whether to find out by a connection if Ray is a cluster that this process has joined.
    """
    own = own_processes()
    if own or not asks_cluster:
        return any(process.poll() is not None for process in own)
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except ConnectionError:
        return True
    except OSError:
        return False
    return False


def leave_if_ray_has_ended(status: int) -> None:
    """End this process at once if Ray has ended, since Ray's own handlers of an exit would look for it for long.

    Args:
        status: Exit status.
    """
    if ray.is_initialized() and ray_has_ended(asks_cluster=True):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def own_processes() -> list["subprocess.Popen[bytes]"]:
    """Return the raylet and the server of a Ray that this process has started; none if it joined a cluster."""
    worker: Any = ray._private.worker
    started = worker._global_node.all_processes if worker._global_node else {}
    kinds = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)
    return [info.process for kind in kinds for info in started.get(kind, [])]


class TerminationWatch:
    """Context in which SIGTERM or SIGHUP asks the job to end, and the end of Ray does not go unnoticed.

    Python handles signals in the main thread only. In another one, such as that of a search's trial, it does nothing.

    Args:
        request: Called at the first of them, in the handler of the signal: asks the job to save and end.
        reason_to_end: Called twice a second with whether a signal has arrived; an error to end the job with at once, or
            None.

    Attributes:
        requested: Whether a signal has arrived.
        reason: Why the main thread was interrupted: what `reason_to_end` has returned, or `RayEndedError`; else None.

    Raises:
        KeyboardInterrupt: There is a `reason`. Raised in the main thread, wherever that is, because Ray's waits end for
            no other exception of a signal's handler.
    """

    def __init__(
        self, request: Callable[[], object], reason_to_end: Callable[[bool], Exception | None]
    ) -> None:
        self.requested = False
        self._request = request
        self._reason_to_end = reason_to_end
        self.reason: Exception | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "TerminationWatch":
        """Handle the signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in handled_signals()}
            signal.signal(_WAKE, self._wake)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching. After a signal others are ignored, since the job is about to write its result and end."""
        if self._thread is not None:
            with self._lock:
                self._done.set()
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_IGN if self.requested else handler)

    def ray_has_ended(self) -> bool:
        """Return whether Ray has ended. After a signal, when errors come before the end, it waits a little for it."""
        until = time.monotonic() + (_SECONDS_OF_RAYS_END if self.requested else 0)
        while not (ended := ray_has_ended(asks_cluster=True)) and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
        return ended

    def _handle(self, *_: object) -> None:
        if not self.requested:
            self.requested = True
            self._request()

    def _wake(self, *_: object) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_CHECKS):
            ended = ray_has_ended(asks_cluster=self.requested)
            reason = RayEndedError() if ended else self._reason_to_end(self.requested)
            if reason is not None:
                self._interrupt(reason)

    def _interrupt(self, reason: Exception) -> None:
        """Interrupt the main thread, by its signal handler. Nothing else reaches it while it waits for Ray."""
        with self._lock:
            if not self._done.is_set():
                self._done.set()
                self.reason = reason
                os.kill(os.getpid(), _WAKE)
