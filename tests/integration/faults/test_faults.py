"""Fault tolerance: runs whose workers, nodes and drivers are killed at random end with unchanged losses."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import disturbed_run
import numpy as np
import pytest
import small_run
from disturbed_run import STEPPING, Report, ZeroStage
from faulty_cluster import Fault, FaultyCluster, faulty_cluster
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import WorkerRange

_MAX_WAIT_SECONDS = 240
"""Generous, as it only ends a test that would wait forever: workers start, and lost nodes are noticed, in a minute."""

KINDS: tuple[Fault, ...] = ("worker", "node", "driver")


@pytest.fixture(scope="module")
def cluster() -> Iterator[FaultyCluster]:
    with faulty_cluster(nodes=2) as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    small_run.write_data(folder)
    return folder


def disturb(
    data: Path,
    storage: Path,
    cluster: FaultyCluster,
    zero_stage: ZeroStage,
    seeds: range,
    faults_per_run: int,
) -> list[Report]:
    """Disturb one run per seed and compare each with the same undisturbed run."""
    plain = disturbed_run.run_undisturbed(
        disturbed_run.config_of(data, storage, f"plain{zero_stage}", zero_stage), cluster
    )
    reports = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        faults = [KINDS[(seed + number) % 3] for number in range(faults_per_run)]
        config = disturbed_run.config_of(data, storage, f"disturbed{zero_stage}-{seed}", zero_stage)
        report = disturbed_run.run_disturbed(config, cluster, faults, random)
        disturbed_run.compare(report, disturbed_run.folder_of(config), plain)
        Console().print(f"ZeRO {zero_stage}, seed {seed}: {report}")
        reports.append(report)
    return reports


@pytest.mark.runs
def test_a_short_campaign_in_a_separate_process() -> None:
    # A process can be connected to one cluster only, and the other tests of this session use theirs.
    name = f"{__file__}::{test_one_of_each_fault_changes_nothing.__name__}"
    command = [sys.executable, "-m", "pytest", "-m", "faults", "-p", "no:cacheprovider", name]
    environment = {
        variable: value for variable, value in os.environ.items() if not variable.startswith("RAY_")
    }
    campaign = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert campaign.returncode == 0, campaign.stdout[-10_000:]


@pytest.mark.faults
def test_one_of_each_fault_changes_nothing(data: Path, tmp_path: Path, cluster: FaultyCluster) -> None:
    [report] = disturb(data, tmp_path, cluster, 2, range(1), faults_per_run=3)
    assert sum(report.killed.values()) == 3
    assert (report.lost, report.repeated, report.different_steps) == (0, 0, 0)


@pytest.mark.faults
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_many_faults_change_nothing(
    data: Path, tmp_path: Path, cluster: FaultyCluster, zero_stage: ZeroStage
) -> None:
    reports = disturb(data, tmp_path, cluster, zero_stage, range(10, 12), faults_per_run=6)
    assert sum(sum(report.killed.values()) for report in reports) >= 10
    assert sum(report.restarts for report in reports) > 0
    assert [(report.lost, report.repeated, report.different_steps) for report in reports] == [(0, 0, 0)] * 2


@pytest.mark.faults
def test_an_elastic_run_shrinks_and_grows_with_its_cluster(
    data: Path, tmp_path: Path, cluster: FaultyCluster
) -> None:
    options = {"steps": 1500, "checkpoint_every": 50}
    plain = disturbed_run.run_undisturbed(
        disturbed_run.config_of(data, tmp_path, "plain", 2, **options), cluster
    )
    config = disturbed_run.config_of(data, tmp_path, "elastic", 2, num_workers=WorkerRange(1, 2), **options)
    job = disturbed_run.start(config, cluster)
    folder = disturbed_run.folder_of(config)
    wait_until(job, lambda: RunFolder(str(folder)).newest_step() >= 50)
    cluster.kill_node(np.random.default_rng(0))
    wait_until(job, lambda: "workers were lost: 1 resume" in disturbed_run.screen_of(config))
    cluster.add_node()
    wait_until(job, lambda: "more workers joined: 2 resume" in disturbed_run.screen_of(config))
    assert job.wait() == 0
    report = Report()
    disturbed_run.compare(report, folder, plain)
    Console().print(f"2 -> 1 -> 2 workers: {report}")
    assert (report.lost, report.repeated) == (0, 0)
    assert small_run.losses(folder) == pytest.approx(small_run.losses(plain), rel=1e-2, abs=1e-4)


@pytest.mark.faults
def test_a_run_saves_when_a_node_is_preempted(data: Path, tmp_path: Path, cluster: FaultyCluster) -> None:
    options = {"checkpoint_every": 10_000, "max_failures": 0}
    plain = disturbed_run.run_undisturbed(
        disturbed_run.config_of(data, tmp_path, "plain", 2, **options), cluster
    )
    config = disturbed_run.config_of(data, tmp_path, "warned", 2, **options)
    job = disturbed_run.start(config, cluster)
    folder = disturbed_run.folder_of(config)
    wait_until(job, lambda: bool(STEPPING.search(disturbed_run.screen_of(config))))
    cluster.announce_preemption(seconds=30)
    wait_until(job, lambda: RunFolder(str(folder)).newest_step() > 0)
    saved = RunFolder(str(folder)).newest_step()
    cluster.kill_preempted_node()
    cluster.add_node()
    assert job.wait() == 0, disturbed_run.screen_of(config)
    assert f"2 resume from step {saved}" in disturbed_run.screen_of(config)
    assert small_run.losses(folder) == small_run.losses(plain)


def wait_until(job: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
    """Return as soon as `condition()` is true; fail if the job ends first or after `_MAX_WAIT_SECONDS`."""
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while not condition():
        assert job.poll() is None, "the run ended first"
        assert time.monotonic() < deadline, f"not true after {_MAX_WAIT_SECONDS} s"
        threading.Event().wait(0.2)
