"""Settings and fixtures of all tests: hypothesis, workers of pytest-xdist, one local Ray per process, slowest files."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator

import pytest
import ray
from filelock import FileLock
from hypothesis import settings

from perceiver_dist.cluster.lean_ray import lean_ray
from perceiver_dist.cluster.worker_template import start_template
from perceiver_dist.training.worker_imports import TRAINING

# No deadline, since the code is not at fault when a machine is busy. Derandomized and without a database of earlier
# failures, so that every run tests the same examples.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")

if "PYTEST_XDIST_WORKER" in os.environ:
    # `make test` runs one process per core; more threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

STARTED_FIRST = (
    "test_laptop_cluster.py",
    "test_training.py",
    "integration",
    "training",
    "benchmarks",
    "tracking",
    "test_grid_kernels.py",
    "test_candidates.py",
    "preflight",
    "fuzz",
)
"""The laptop's cluster, which needs ports that the Ray of a session holds once it runs; then the slowest files and
folders, one of which would otherwise run alone at the end."""
SUMMARY_SECONDS = 60
"""A session that takes less time names no slowest files."""
SLOWEST_FILES = 5


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Ray for this session, with 6 logical CPUs on any machine: tests of resources rely on the number.

    As in a job, its workers are forked from a process that has imported what they need, which takes half the CPU time.
    """
    start_template(TRAINING)
    # One process after the other: together, on busy cores, they may take longer than the 30 seconds that Ray allows.
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray_start.lock"), lean_ray():
        ray.init(
            address="local",
            num_cpus=6,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by the first name of `STARTED_FIRST` in their path."""

    def place(item: pytest.Item) -> int:
        names = [number for number, name in enumerate(STARTED_FIRST) if name in item.path.parts]
        return min(names, default=len(STARTED_FIRST))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the files that took most of a long session, so that a slow test is noticed when it is added."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    if (total := sum(seconds.values())) >= SUMMARY_SECONDS:
        slowest = sorted(seconds.items(), key=lambda file: file[1], reverse=True)[:SLOWEST_FILES]
        files = ", ".join(f"{file} {taken:.0f}" for file, taken in slowest)
        terminalreporter.write_line(f"{total:.0f} s of tests, most in: {files}")
