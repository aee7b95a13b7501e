"""All processes of a job killed at once: the same command continues, and nothing tells the run from an undisturbed one.

Each kind of moment has a run of its own that spends most of its time there, and is killed several times.
"""

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import disturbed_run
import numpy as np
import psutil
import pytest
import small_run
from disturbed_run import STEPPING, Report
from faulty_proxy import wait
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder

pytestmark = pytest.mark.chaos

KILLS = 3


@dataclass(frozen=True)
class Moments:
    """A kind of moment.

    Attributes:
        train: Options of a run that spends most of its time in such moments.
        after_start: Whether it is killed some seconds after its first step, and not after its start.
        seconds: Maximum seconds until it is killed.
        held_out: Samples of each evaluation, per source.
    """

    train: dict[str, Any]
    after_start: bool = True
    seconds: float = 8.0
    held_out: int = 21


MOMENTS = {
    "start": Moments({"steps": 100}, after_start=False, seconds=12.0),
    "step": Moments({"steps": 800, "checkpoint_every": 40}),
    "save": Moments({"steps": 300, "checkpoint_every": 1}),
    "evaluation": Moments({"steps": 80, "checkpoint_every": 10, "eval_every": 2}, held_out=400),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_a_job_all_of_whose_processes_are_killed_continues_exactly(tmp_path: Path, kind: str) -> None:
    moments, random = MOMENTS[kind], np.random.default_rng(len(kind))
    small_run.write_data(tmp_path / "data", evaluation=moments.held_out)
    plain, killed = (
        small_run.small_config(tmp_path / "data", tmp_path, name, **moments.train)
        for name in ("plain", "killed")
    )
    assert disturbed_run.start(plain).wait() == 0, disturbed_run.screen_of(plain)
    kills, steps, screen = 0, list[int](), ""
    while kills < KILLS:
        job, before = disturbed_run.start(killed), len(screen)
        while moments.after_start and job.poll() is None and not STEPPING.search(screen[before:]):
            wait(0.1)
            screen = disturbed_run.screen_of(killed)
        wait(random.uniform(0, moments.seconds))
        if job.poll() is not None:
            break
        _kill_all(job)
        kills += 1
        steps.append(RunFolder.of(killed).newest_step())
        screen = disturbed_run.screen_of(killed)
    assert disturbed_run.start(killed).wait() == 0, disturbed_run.screen_of(killed)
    report = Report(killed={"all processes": kills})
    folders = disturbed_run.folder_of(killed), disturbed_run.folder_of(plain)
    disturbed_run.compare(report, *folders)
    Console().print(f"{kind}: killed with checkpoints of steps {steps}, {report}")
    assert kills == KILLS
    assert (report.lost, report.repeated, report.different_steps) == (0, 0, 0)
    assert _evaluations(folders[0]) == _evaluations(folders[1])


def _kill_all(job: "subprocess.Popen[bytes]") -> None:
    """Kill a job with all that it has started, each before it can notice the end of another."""
    processes = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    for process in processes:
        if process.is_running():
            process.send_signal(signal.SIGSTOP)
    for process in processes:
        if process.is_running():
            process.kill()
    job.wait()


def _evaluations(folder: Path) -> list[dict[str, float]]:
    """Return what was logged of evaluations."""
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry for entry in entries if "train/loss" not in entry]
