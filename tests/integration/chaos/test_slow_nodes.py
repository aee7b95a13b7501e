"""A node that computes slowly is named, and left out when workers start again."""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import disturbed_run
import psutil
import pytest
import small_run
from disturbed_run import STEPPING
from faulty_cluster import FaultyCluster, faulty_cluster
from waiting import wait_until

pytestmark = pytest.mark.chaos

_STOPPED_SECONDS, _RUNNING_SECONDS = 0.045, 0.015
"""A process that is stopped for three quarters of the time computes at a quarter of its speed."""


def test_a_slow_node_is_named_and_left_out_at_the_next_start(tmp_path: Path) -> None:
    small_run.write_data(tmp_path / "data")
    with faulty_cluster(nodes=3) as cluster:
        options = {"steps": 5000, "checkpoint_every": 50, "leave_out_slow_nodes": True}
        config = disturbed_run.config_of(tmp_path / "data", tmp_path, "slow", 2, **options)
        job = disturbed_run.start(config, cluster)
        wait_until(lambda: STEPPING.search(disturbed_run.screen_of(config)) or job.poll() is not None, 300)
        slow = _ranks(cluster)[0]
        node = slow.ppid()
        with _slowed(slow):
            wait_until(lambda: "is slow" in disturbed_run.screen_of(config) or job.poll() is not None, 300)
        slow.kill()
        wait_until(
            lambda: "workers start without" in disturbed_run.screen_of(config) or job.poll() is not None, 300
        )
        wait_until(lambda: len(_ranks(cluster)) == 2 or job.poll() is not None, 300)
        nodes = {rank.ppid() for rank in _ranks(cluster)}
        job.terminate()
        assert job.wait() == 143, disturbed_run.screen_of(config)
    screen = disturbed_run.screen_of(config)
    assert re.search(r"node \S+ \(rank [01]\) is slow: its forward passes have taken \d+\.\d times", screen)
    assert nodes, "no rank was seen after the restart"
    assert node not in nodes


def _ranks(cluster: FaultyCluster) -> list[psutil.Process]:
    return [process for process in cluster.workers() if "RayTrainWorker" in " ".join(process.cmdline())]


@contextmanager
def _slowed(process: psutil.Process) -> Iterator[None]:
    """Stop a process most of the time."""
    done = threading.Event()

    def stop_and_go() -> None:
        with suppress(psutil.NoSuchProcess):
            while not done.is_set():
                process.send_signal(signal.SIGSTOP)
                done.wait(_STOPPED_SECONDS)
                process.send_signal(signal.SIGCONT)
                done.wait(_RUNNING_SECONDS)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
