"""An exception that is raised twice at the same step ends a run as a bug; a process that is killed twice does not."""

import json
import os
import signal
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pytest
import small_run
from rich.console import Console

from perceiver_dist.training import driver
from perceiver_dist.training.driver import run_training


def worker_with_fault(fault: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a training function for workers that calls `fault(rank)` before each step."""

    # A nested function is pickled by value: the workers cannot import this module.
    def train_worker(job: Any) -> None:
        from perceiver_dist.training import loop, worker

        take_step = loop._Rank._take_step

        def step(rank: Any) -> None:
            rank.state.enter("training", rank.step + 1)
            fault(rank)
            take_step(rank)

        loop._Rank._take_step = step  # type: ignore[method-assign, assignment]
        worker.train_worker(job)

    return train_worker


@pytest.mark.runs
@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_that_raises_at_the_same_step_twice_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_at_step_7(rank: Any) -> None:
        if rank.step == 6 and rank.rank == 1:
            raise TypeError("raised on purpose")

    small_run.write_data(tmp_path / "data")
    monkeypatch.setattr(driver, "train_worker", worker_with_fault(raise_at_step_7))
    screen = StringIO()
    config = small_run.small_config(tmp_path / "data", tmp_path, "raises", checkpoint_every=3)
    result = run_training(config, Console(file=screen, width=500))
    line = (
        "step 7: rank 1 raised while training: TypeError: raised on purpose (perceiver_dist/training/loop.py:"
    )
    lines = [text for text in screen.getvalue().splitlines() if text.startswith("step 7: ")]
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert lines[0].endswith("; see errors/step-00000007-rank-1.txt; restarting the workers")
    assert "2 workers resume from step 6 after the error" in screen.getvalue().splitlines()
    assert "workers were lost" not in screen.getvalue()
    assert (result["exit"], result["steps"], result["restarts"]) == ("failed", 6, 1)
    assert result["error"].startswith(line)
    assert result["error"].endswith(", for the second time: it is the code, not the machine")
    assert json.loads((tmp_path / "raises" / "result.json").read_text())["error"] == result["error"]
    trace = (tmp_path / "raises" / "errors" / "step-00000007-rank-1.txt").read_text()
    assert trace.splitlines()[-1] == "TypeError: raised on purpose"
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    stored = {entry.path for entry in client.list_artifacts(result["mlflow_run_id"], "errors")}
    assert "errors/step-00000007-rank-1.txt" in stored


@pytest.mark.runs
@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_that_is_killed_at_the_same_step_twice_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_twice(rank: Any) -> None:
        marks = [tmp_path / "killed once", tmp_path / "killed twice"]
        mark = next((mark for mark in marks if not mark.exists()), None)
        if rank.step == 6 and rank.rank == 1 and mark:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    small_run.write_data(tmp_path / "data")
    monkeypatch.setattr(driver, "train_worker", worker_with_fault(die_twice))
    screen = StringIO()
    config = small_run.small_config(tmp_path / "data", tmp_path, "killed", steps=8)
    result = run_training(config, Console(file=screen, width=500))
    assert (result["exit"], result["steps"], result["restarts"]) == ("completed", 8, 2)
    assert screen.getvalue().count("workers were lost: 2 resume from step 0") == 2
    assert "raised" not in screen.getvalue()
