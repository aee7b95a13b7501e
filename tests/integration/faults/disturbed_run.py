"""A training that is disturbed at random moments until it ends, and what it has in common with an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import small_run
from faulty_cluster import Fault, FaultyCluster

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import DeepSpeedConfig, RunConfig

STEPS = 400
_LONGEST_QUIET = 20.0
"""Seconds between two faults, at most; a start of the workers takes about half of it."""


@dataclass
class Report:
    """What happened to one run, and what it lost by it.

    Attributes:
        killed: What was killed, by kind of fault.
        restarts: Times that the workers or the driver were started again.
        lost: Samples that a step of the undisturbed run learned from and this run's did not.
        repeated: Samples that a step of this run learned from and the undisturbed run's did not.
        different_steps: Steps with another loss, by one bit or more.
        largest_difference: Largest relative difference of a loss.
    """

    killed: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    lost: int = 0
    repeated: int = 0
    different_steps: int = 0
    largest_difference: float = 0.0


def config_of(data: Path, storage: Path, name: str, zero_stage: int, **train: Any) -> RunConfig:
    """Return the configuration of a run on a `FaultyCluster`; `train` replaces its training options."""
    options = {"steps": STEPS, "gpus_per_worker": 1, "device": "cpu", "max_failures": 1000, **train}
    config = small_run.small_config(data, storage, name, **options)
    return replace(config, deepspeed=DeepSpeedConfig(zero_stage=zero_stage))


def start(config: RunConfig, cluster: FaultyCluster) -> "subprocess.Popen[bytes]":
    """Start the run's job, or start it again."""
    storage = Path(config.storage.path)
    file = storage / f"{config.storage.run_name}.yaml"
    file.write_text(to_yaml(config))
    with (storage / f"{config.storage.run_name}.txt").open("a") as screen:
        return subprocess.Popen(
            [sys.executable, "jobs/train_multimodal.py", "--config", str(file)],
            env=cluster.environment,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )


def run_undisturbed(config: RunConfig, cluster: FaultyCluster) -> Path:
    """Run to the end; return the run's folder."""
    assert start(config, cluster).wait() == 0, screen_of(config)
    return folder_of(config)


def run_disturbed(
    config: RunConfig, cluster: FaultyCluster, faults: Sequence[Fault], dice: np.random.Generator
) -> Report:
    """Run to the end, with these faults in this order, each after a random time in which the run goes on."""
    report = Report()
    job = start(config, cluster)
    for fault in faults:
        try:
            job.wait(timeout=dice.uniform(0, _LONGEST_QUIET))
            break
        except subprocess.TimeoutExpired:
            pass
        if fault == "driver":
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job = start(config, cluster)
            report.restarts += 1
            killed = "driver"
        elif fault == "node":
            cluster.remove_node(dice)
            cluster.add_node()
            killed = "node"
        else:
            killed = cluster.kill_worker(dice)
            while not killed and job.poll() is None:
                threading.Event().wait(0.1)
                killed = cluster.kill_worker(dice)
        if killed:
            kind = killed.removeprefix("ray::").partition(".")[0]
            report.killed[kind] = report.killed.get(kind, 0) + 1
    assert job.wait() == 0, screen_of(config)
    report.restarts += json.loads((folder_of(config) / "result.json").read_text())["restarts"]
    return report


def compare(report: Report, disturbed: Path, undisturbed: Path) -> None:
    """Fill in what a run lost by its faults."""
    for mine, theirs in zip(samples(disturbed), samples(undisturbed), strict=True):
        report.lost += len(theirs - mine)
        report.repeated += len(mine - theirs)
    for found, expected in zip(small_run.losses(disturbed), small_run.losses(undisturbed), strict=True):
        report.different_steps += found != expected
        report.largest_difference = max(report.largest_difference, abs(found - expected) / expected)


def samples(folder: Path) -> list[set[tuple[str, str]]]:
    """Return the samples of every step, each with the unit that it was in."""
    steps = [json.loads(line)["units"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [{(unit, key) for unit, keys in units.items() for key in keys} for units in steps]


def folder_of(config: RunConfig) -> Path:
    """Return the run's folder."""
    return Path(config.storage.path) / str(config.storage.run_name)


def screen_of(config: RunConfig) -> str:
    """Return what all starts of the run's job printed."""
    return (Path(config.storage.path) / f"{config.storage.run_name}.txt").read_text()
