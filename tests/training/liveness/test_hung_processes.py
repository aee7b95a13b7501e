"""Stacks of other processes, and their end: processes of Python that wait, are stopped, or have ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perceiver_dist.cluster.process_state import started_at
from perceiver_dist.training.liveness.heartbeat import Process
from perceiver_dist.training.liveness.hung_processes import stacks_of

WAITS = """
import faulthandler, os, sys, time
from perceiver_dist.training.liveness.heartbeat import STACKS_SIGNAL
file = os.memfd_create("stacks")
faulthandler.register(STACKS_SIGNAL, file=file)
def a_function_that_waits():
    print(file, flush=True)
    time.sleep(1000)
a_function_that_waits()
"""


@contextmanager
def waiting_process() -> Iterator[Process]:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        file = int(process.stdout.readline())
        try:
            yield Process("node", "host", process.pid, started_at(process.pid) or 0, file)
        finally:
            process.kill()


def test_a_process_that_waits_shows_where() -> None:
    with waiting_process() as process:
        assert "in a_function_that_waits" in stacks_of(process)
        # Once more: what was shown before is left out.
        assert stacks_of(process).count("a_function_that_waits") == 1


def test_a_stopped_process_is_called_so() -> None:
    with waiting_process() as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert stacks_of(process) == "is stopped (by SIGSTOP or a debugger), and can show no stacks\n"


@pytest.mark.parametrize("started", [0, 12345])
def test_another_process_with_its_number_gets_no_signal(started: int) -> None:
    # The signal would end this process, which has registered no handler for it.
    assert stacks_of(Process("node", "host", os.getpid(), started, 1)) == "has ended\n"
