"""SIGTERM to all processes of a job at once, as timeout(1), batch systems, systemd and pods send it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import small_run
import small_search

from perceiver_dist.checkpoint.lease import LEASE
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.search.study.search_config import SearchConfig

pytestmark = pytest.mark.runs

GRACE = 30
"""Seconds between SIGTERM and SIGKILL: the default of pods and of Slurm."""


class Ended(NamedTuple):
    """A job that has ended."""

    status: int
    screen: str


def start(storage: Path, name: str, steps: int = small_run.STEPS) -> "subprocess.Popen[str]":
    """Start or resume a run of the small data in a process group of its own."""
    data = storage / "data"
    if not data.exists():
        small_run.write_data(data)
    file = storage / f"{name}.yaml"
    file.write_text(to_yaml(small_run.small_config(data, storage, name, steps=steps)))
    command = [sys.executable, "jobs/train_multimodal.py", "--config", str(file)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )


def wait_for_steps(folder: Path, job: "subprocess.Popen[str]") -> None:
    """Wait for a checkpoint, and a random part of a second more."""
    while RunFolder(str(folder)).newest_step() == 0:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    time.sleep(random.uniform(0, 0.5))  # noqa: S311 # hits different moments of a step


def terminate(job: "subprocess.Popen[str]", others: Sequence[psutil.Process]) -> Ended:
    """Send SIGTERM to a job and to other processes at once, and wait for its end."""
    for process in [psutil.Process(job.pid), *others]:
        process.send_signal(signal.SIGTERM)
    screen, _ = job.communicate(timeout=GRACE)
    return Ended(job.returncode, screen)


def check_saved(ended: Ended, folder: Path) -> None:
    """Check that a run has saved its last step and said so, and nothing else."""
    result = json.loads((folder / "result.json").read_text())
    steps = RunFolder(str(folder)).newest_step()
    assert (ended.status, result["exit"], result["error"]) == (143, "preempted", ""), ended.screen
    assert result["steps"] == steps
    assert result["checkpoint"] == str(folder / f"step-{steps:08d}")
    assert f"preempted at step {steps}: --storage.run_name {folder.name} resumes from" in ended.screen
    assert "SIGTERM" not in ended.screen
    assert "Traceback" not in ended.screen
    assert not (folder / "lease.json").exists()


def test_a_run_whose_processes_are_all_terminated_saves_and_resumes_with_the_same_losses(
    tmp_path: Path,
) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "stopped"
    assert start(tmp_path, "undisturbed").wait() == 0
    job = start(tmp_path, "stopped")
    wait_for_steps(folder, job)
    check_saved(terminate(job, psutil.Process(job.pid).children(recursive=True)), folder)
    job = start(tmp_path, "stopped")
    newest = RunFolder(str(folder)).newest_step()
    while RunFolder(str(folder)).newest_step() == newest:
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTERM)
    screen, _ = job.communicate(timeout=GRACE)
    check_saved(Ended(job.returncode, screen), folder)
    assert start(tmp_path, "stopped").wait() == 0
    assert small_run.losses(folder) == small_run.losses(undisturbed)


def test_a_run_whose_ray_is_gone_ends_with_its_newest_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "lost"
    job = start(tmp_path, "lost")
    wait_for_steps(folder, job)
    ray = [
        process
        for process in psutil.Process(job.pid).children()
        if process.name() in ("raylet", "gcs_server")
    ]
    assert len(ray) == 2
    os.kill(job.pid, signal.SIGTERM)
    for process in ray:
        process.kill()
    screen, _ = job.communicate(timeout=GRACE)
    result = json.loads((folder / "result.json").read_text())
    assert (job.returncode, result["exit"]) == (143, "preempted")
    assert result["steps"] == RunFolder(str(folder)).newest_step()
    assert f"preempted at step {result['steps']} (Ray was ended before the ranks could save)" in screen
    assert "gcs" not in screen.lower()


def test_a_run_that_is_starting_ends_at_once(tmp_path: Path) -> None:
    job = start(tmp_path, "early")
    assert job.stdout
    while "starting 2 workers" not in job.stdout.readline():
        pass
    ended = terminate(job, psutil.Process(job.pid).children(recursive=True))
    assert ended.status == 143
    assert json.loads((tmp_path / "early" / "result.json").read_text())["exit"] == "preempted"
    assert "preempted at step" in ended.screen


def test_a_second_job_of_the_same_name_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    # It runs for longer than the second one takes to start.
    first = start(tmp_path, "twice", steps=10_000)
    wait_for_steps(folder, first)
    second = start(tmp_path, "twice", steps=10_000)
    screen, _ = second.communicate()
    assert second.returncode == 2, screen
    assert screen.startswith(f"error: run 'twice' is being written by process {first.pid} on ")
    assert len(screen.splitlines()) == 1
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    third = start(tmp_path, "twice", steps=10_000)
    assert third.stdout
    lines: list[str] = []
    while not (lines and lines[-1].startswith("step ")):
        lines.append(third.stdout.readline())
        assert lines[-1], lines
    os.killpg(third.pid, signal.SIGKILL)
    third.wait()
    assert "to see whether that has ended" not in "".join(lines)
    assert "damaged" not in "".join(lines)


def test_a_search_whose_processes_are_all_terminated_ends_and_resumes(tmp_path: Path) -> None:
    small_run.write_data(tmp_path / "data")
    search = SearchConfig(
        space={"model.latents": [4, 8]}, trials=2, sampler="grid", baseline=False, name="shapes"
    )
    config = small_search.search_config(tmp_path / "data", tmp_path, search, steps=600)
    job = small_search.start(config, tmp_path)
    # While the first one starts, so that it is not over before the second one has started.
    while not (tmp_path / "shapes" / LEASE).exists():
        assert job.poll() is None
        time.sleep(0.05)
    second = small_search.start(config, tmp_path)
    assert second.wait() == 2
    while RunFolder(str(tmp_path / "shapes" / "trial-000")).newest_step() == 0:
        assert job.poll() is None
        time.sleep(0.05)
    ended = terminate(job, psutil.Process(job.pid).children(recursive=True))
    screen = (tmp_path / "output.txt").read_text()
    assert ended.status == 143, screen
    assert f"error: search 'shapes' is being written by process {job.pid} on " in screen
    assert "interrupted: run the same command again to resume the search" in screen
    assert "Traceback" not in screen
    assert small_search.start(config, tmp_path).wait() == 0
    assert [trial["state"] for trial in small_search.trials(tmp_path / "shapes")] == [
        "completed",
        "completed",
    ]
