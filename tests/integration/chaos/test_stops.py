"""Processes that fall silent: stopped with SIGSTOP at random moments, they are found, named and replaced.

Each run starts a Ray of its own, as on a laptop. What hangs is ended after `HANG_SECONDS`, and the run has to end with
the samples and the losses of an undisturbed one, bit for bit.
"""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import disturbed_run
import numpy as np
import psutil
import pytest
import small_run
from disturbed_run import Report
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import RunConfig

HANG_SECONDS = 10.0
"""Long enough for a busy machine of two cores, whose steps take a tenth of a second."""
STEPS = 400
_MAX_SECONDS_OF_RUN = 300
"""Only ends a test that would wait for ever: a run takes a minute, and each stop as long again at most."""

KINDS = {
    "rank": "ray::RayTrainWorker",
    "tracker": "ray::Tracker",
    "controller": "ray::TrainController",
    "coordinator": "ray::SplitCoordinator",
    "reader": "ray::ReadUnit",
    "raylet": "raylet",
    "gcs_server": "gcs_server",
}
"""Kind of process -> beginning of its command. Names of Ray's workers change with what they do."""


@dataclass(frozen=True)
class Outcome:
    """What came of stopping a process.

    Attributes:
        kind: Kind of the process.
        step: Newest checkpoint at the time.
        detected: Seconds until the screen named the hang; None if the run needed nobody to help it.
        report: Differences from the undisturbed run.
    """

    kind: str
    step: int
    detected: float | None
    report: Report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    small_run.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = _config(data, tmp_path_factory.mktemp("plain"), "plain")
    with disturbed_run.start(config) as job:
        assert job.wait(_MAX_SECONDS_OF_RUN) == 0, disturbed_run.screen_of(config)
    return disturbed_run.folder_of(config)


@pytest.mark.runs
@pytest.mark.parametrize("kind", ["rank", "tracker"])
def test_a_stopped_process_changes_nothing(data: Path, tmp_path: Path, undisturbed: Path, kind: str) -> None:
    outcome = _stop(data, tmp_path, undisturbed, kind, np.random.default_rng(0))
    assert outcome.detected is not None
    if kind == "rank":
        [hang] = (tmp_path / "stopped" / "errors").glob("*-hang-*.txt")
        assert re.search(r"^collective \d+: gloo:", hang.read_text(), re.MULTILINE)
    assert (outcome.report.lost, outcome.report.repeated, outcome.report.different_steps) == (0, 0, 0)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", list(KINDS))
def test_stops_at_random_moments_change_nothing(
    data: Path, tmp_path: Path, undisturbed: Path, kind: str, seed: int
) -> None:
    outcome = _stop(data, tmp_path, undisturbed, kind, np.random.default_rng(seed))
    Console().print(outcome)
    assert (outcome.report.lost, outcome.report.repeated, outcome.report.different_steps) == (0, 0, 0)


@pytest.mark.chaos
@pytest.mark.parametrize("whole", [True, False], ids=["all processes", "the driver"])
def test_a_job_that_comes_back_after_it_was_replaced_writes_nothing(
    data: Path, tmp_path: Path, undisturbed: Path, whole: bool
) -> None:
    config = _config(data, tmp_path, "stopped")
    folder = disturbed_run.folder_of(config)
    with disturbed_run.start(config) as job:
        try:
            _wait_for_step(job, config, 100)
            stopped = [psutil.Process(job.pid)]
            stopped += psutil.Process(job.pid).children(recursive=True) if whole else []
            for process in stopped:
                process.send_signal(signal.SIGSTOP)
            with disturbed_run.start(config, screen="successor") as successor:
                assert successor.wait(_MAX_SECONDS_OF_RUN) == 0, (tmp_path / "successor.txt").read_text()
            written = _contents(folder)
            for process in reversed(stopped):
                process.send_signal(signal.SIGCONT)
            assert job.wait(_MAX_SECONDS_OF_RUN) == 2, disturbed_run.screen_of(config)
        finally:
            _end(job)
    assert "run 'stopped' was taken over by process" in disturbed_run.screen_of(config)
    assert _contents(folder) == written
    report = Report()
    disturbed_run.compare(report, folder, undisturbed)
    assert (report.lost, report.repeated, report.different_steps) == (0, 0, 0)


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's folder. The queue for MLflow is a database that is opened, and holds nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "outbox" not in path.name
    }


def _config(data: Path, storage: Path, name: str) -> RunConfig:
    config = small_run.small_config(
        data, storage, name, steps=STEPS, hang_seconds=HANG_SECONDS, checkpoint_every=20, eval_every=100
    )
    return replace(config, data=replace(config.data, storage_seconds=5))


def _stop(data: Path, storage: Path, undisturbed: Path, kind: str, random: np.random.Generator) -> Outcome:
    """Run to the end; meanwhile stop a process of a kind, once, and never continue it."""
    config = _config(data, storage, "stopped")
    at = int(random.integers(1, STEPS - 100))
    with disturbed_run.start(config) as job:
        try:
            step = _wait_for_step(job, config, at)
            stopped = _one(job, kind, random)
            stopped.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            detected = None
            while job.poll() is None and time.monotonic() - began < _MAX_SECONDS_OF_RUN:
                if detected is None and _HANG.search(disturbed_run.screen_of(config)):
                    detected = time.monotonic() - began
                time.sleep(0.1)
            assert job.poll() == 0, disturbed_run.screen_of(config)
        finally:
            _end(job)
    report = Report(killed={kind: 1})
    disturbed_run.compare(report, disturbed_run.folder_of(config), undisturbed)
    return Outcome(kind, step, detected, report)


_HANG = re.compile(r"restarting the workers|starting again with a new Ray|workers were lost")


def _wait_for_step(job: "subprocess.Popen[bytes]", config: RunConfig, at: int) -> int:
    """Return the last step that is on record, once that is at least `at`, or has been stored by a checkpoint."""
    folder = RunFolder.of(config)
    deadline = time.monotonic() + _MAX_SECONDS_OF_RUN
    while time.monotonic() < deadline and job.poll() is None:
        saved = folder.newest_step()
        if saved + 20 > at:
            return saved
        time.sleep(0.1)
    raise AssertionError(disturbed_run.screen_of(config))


def _one(job: "subprocess.Popen[bytes]", kind: str, random: np.random.Generator) -> psutil.Process:
    """Return a process of the kind, when there is one."""
    deadline = time.monotonic() + _MAX_SECONDS_OF_RUN
    while time.monotonic() < deadline:
        found = sorted(_processes(job, KINDS[kind]), key=lambda process: process.pid)
        if found:
            return found[random.integers(len(found))]
        time.sleep(0.02)
    raise AssertionError(f"no process of kind {kind}")


def _processes(job: "subprocess.Popen[bytes]", name: str) -> Iterator[psutil.Process]:
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            command = process.cmdline()[:1]
        except psutil.NoSuchProcess:
            continue
        if command and command[0].rpartition("/")[2].startswith(name):
            yield process


def _end(job: "subprocess.Popen[bytes]") -> None:
    """End the job and whatever it has started."""
    left = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
    job.kill()
    for process in left:
        if process.is_running():
            process.kill()
