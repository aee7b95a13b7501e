"""Hyperparameter searches over the small run, started as jobs, and their records."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

import small_run

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.search.study.search_config import SearchConfig, SearchRunConfig


def search_config(data: Path, storage: Path, search: SearchConfig, **train: Any) -> SearchRunConfig:
    """Return the configuration of a search; `train` replaces training options of its trials."""
    run = small_run.small_config(data, storage, "unused", **{"num_workers": 1, "steps": 30, **train})
    parts = {part.name: getattr(run, part.name) for part in fields(RunConfig)}
    parts["storage"] = type(run.storage)(path=str(storage))
    parts["tracking"] = type(run.tracking)()
    return SearchRunConfig(**parts, search=search)


def start(config: SearchRunConfig, folder: Path) -> "subprocess.Popen[str]":
    """Start the search job in its own session, so that its whole process group can be killed.

    Its output is appended to output.txt in `folder`.
    """
    file = folder / "search.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "jobs/tune_perceiver.py", "--config", str(file)]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, text=True)


def trials(folder: Path) -> list[dict[str, Any]]:
    """Return the trials that are currently in the record of a search."""
    file = folder / "search.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
    return found


def kill_when(run: "subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    """Kill a job and its child processes as soon as `ready` returns true."""
    while not ready():
        assert run.poll() is None, "the search ended before it was killed"
        Event().wait(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def outcome(folder: Path) -> list[dict[str, Any]]:
    """Return the part of each trial that two runs of the same search must agree on."""
    return [
        {
            "values": trial["values"],
            "state": trial["state"],
            "scores": [evaluation["score"] for evaluation in trial["evaluations"]],
        }
        for trial in trials(folder)
    ]
