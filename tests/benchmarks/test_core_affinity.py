"""Cores of a measured run: its rank has the first core to itself, and everything else stays off it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from perceiver_dist.benchmarks.core_affinity import rank_on_own_core, split_cores
from perceiver_dist.benchmarks.step_overhead import measure_overhead
from perceiver_dist.errors import InternalError, UserError

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="cores cannot be divided where there is one"
)


@pytest.fixture
def one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@needs_two_cores
def test_the_rank_is_moved_and_others_are_kept_off_its_core() -> None:
    before = os.sched_getaffinity(0)
    own, others = split_cores()
    assert own | others == before
    assert not own & others
    bash = str(shutil.which("bash"))
    seen: list[float] = []
    with rank_on_own_core(seen.append):
        rank, reader = (
            subprocess.Popen([bash, "-c", f"exec -a {title} sleep 600"])  # titles of our own
            for title in ("ray::RayTrainWorker.poll_status", "ray::MapBatches")
        )
        deadline = time.monotonic() + 60
        while set(psutil.Process(rank.pid).cpu_affinity()) != own and time.monotonic() < deadline:
            pass
        cores = {process: set(psutil.Process(process.pid).cpu_affinity()) for process in (rank, reader)}
        for process in cores:
            process.kill()
            process.wait()
    assert list(cores.values()) == [own, others]
    # A shell that sleeps.
    assert seen
    assert max(seen) < 1
    assert os.sched_getaffinity(0) == before


@needs_two_cores
def test_a_run_whose_rank_was_not_found_is_not_reported() -> None:
    with (
        pytest.raises(InternalError, match="no process whose title begins with 'ray::RayTrainWorker' ran"),
        rank_on_own_core(print),
    ):
        pass


@pytest.mark.usefixtures("one_core")
def test_one_core_is_too_few() -> None:
    with pytest.raises(UserError, match="this process may use 1 core; the benchmark needs 2"):
        measure_overhead()
