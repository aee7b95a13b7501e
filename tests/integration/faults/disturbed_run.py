"""Fault injection: training runs with processes killed at random moments, compared with an undisturbed run."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import small_run
from faulty_cluster import Fault, FaultyCluster

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import DeepSpeedConfig, RunConfig

STEPS = 400
"""Long enough for a run to meet nearly all of six faults."""
_MAX_SECONDS_BETWEEN_FAULTS = 20.0
"""About twice the time in which workers start, so that faults hit both starting and training workers."""

STEPPING = re.compile(r"^step \d+/", re.MULTILINE)
"""A line of a run that takes steps, on its screen."""

ZeroStage = Literal[0, 1, 2, 3]


@dataclass
class Report:
    """Faults of one run, and its differences from an undisturbed run.

    Attributes:
        killed: Number of killed processes or nodes, by kind.
        restarts: Number of restarts of the workers or the driver.
        lost: Samples that a step of the undisturbed run learned from and the same step of this run did not.
        repeated: Samples that a step of this run learned from and the same step of the undisturbed run did not.
        different_steps: Steps whose loss differs by at least one bit.
        largest_difference: Largest relative difference of a loss.
    """

    killed: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    lost: int = 0
    repeated: int = 0
    different_steps: int = 0
    largest_difference: float = 0.0


def config_of(data: Path, storage: Path, name: str, zero_stage: ZeroStage, **train: Any) -> RunConfig:
    """Return the configuration of a run on a `FaultyCluster`; `train` replaces training options."""
    options = {"steps": STEPS, "gpus_per_worker": 1, "device": "cpu", "max_failures": 1000, **train}
    config = small_run.small_config(data, storage, name, **options)
    return replace(config, deepspeed=DeepSpeedConfig(zero_stage=zero_stage))


def start(
    config: RunConfig, cluster: FaultyCluster | None = None, screen: str | None = None
) -> "subprocess.Popen[bytes]":
    """Start or restart the training job, by default with a Ray of its own; its output is appended to a file.

    Args:
        config: The run's configuration.
        cluster: The cluster to train on.
        screen: Name of the file, without suffix; by default that of the run.
    """
    alone = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    storage = Path(config.storage.path)
    file = storage / f"{config.storage.run_name}.yaml"
    file.write_text(to_yaml(config))
    with (storage / f"{screen or config.storage.run_name}.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-u", "jobs/train_multimodal.py", "--config", str(file)],
            env=cluster.environment if cluster else alone,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def run_undisturbed(config: RunConfig, cluster: FaultyCluster) -> Path:
    """Run to the end and return the run's folder."""
    assert start(config, cluster).wait() == 0, screen_of(config)
    return folder_of(config)


def run_disturbed(
    config: RunConfig, cluster: FaultyCluster, faults: Sequence[Fault], random: np.random.Generator
) -> Report:
    """Run to the end while injecting these faults in order, each after a random time; fewer if the run ends first."""
    report = Report()
    job = start(config, cluster)
    for fault in faults:
        try:
            job.wait(timeout=random.uniform(0, _MAX_SECONDS_BETWEEN_FAULTS))
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
            cluster.kill_node(random)
            cluster.add_node()
            killed = "node"
        else:
            killed = cluster.kill_worker(random)
            while not killed and job.poll() is None:
                threading.Event().wait(0.1)
                killed = cluster.kill_worker(random)
        if killed:
            kind = killed.removeprefix("ray::").partition(".")[0]
            report.killed[kind] = report.killed.get(kind, 0) + 1
    assert job.wait() == 0, screen_of(config)
    report.restarts += json.loads((folder_of(config) / "result.json").read_text())["restarts"]
    return report


def compare(report: Report, disturbed: Path, undisturbed: Path) -> None:
    """Add the differences between the folders of a disturbed and an undisturbed run to the report."""
    for found, expected in zip(samples(disturbed), samples(undisturbed), strict=True):
        report.lost += len(expected - found)
        report.repeated += len(found - expected)
    for loss, other in zip(small_run.losses(disturbed), small_run.losses(undisturbed), strict=True):
        report.different_steps += loss != other
        report.largest_difference = max(report.largest_difference, abs(loss - other) / other)


def samples(folder: Path) -> list[set[tuple[str, str]]]:
    """Return the (unit, key) pairs of every step's samples."""
    steps = [json.loads(line)["units"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [{(unit, key) for unit, keys in units.items() for key in keys} for units in steps]


def folder_of(config: RunConfig) -> Path:
    """Return the run's folder."""
    return Path(config.storage.path) / str(config.storage.run_name)


def screen_of(config: RunConfig) -> str:
    """Return the output of the run's job, over all its restarts."""
    return (Path(config.storage.path) / f"{config.storage.run_name}.txt").read_text()
