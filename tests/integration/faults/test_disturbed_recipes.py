"""Runs with averaged weights, a best checkpoint and early stopping: disturbed ones end as undisturbed ones do."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch
from rich.console import Console

from perceiver_dist.checkpoint.format import StoredCheckpoint
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import DeepSpeedConfig, RunConfig
from perceiver_dist.training.driver import run_training
from pipelines.augment.augment_config import AugmentConfig

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    small_run.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbs."""
    storage = tmp_path_factory.mktemp("undisturbed")
    run_training(recipe(data, storage, "run"), Console(file=StringIO()))
    return storage / "run"


def recipe(data: Path, storage: Path, name: str, **train: Any) -> RunConfig:
    """A run that classifies all squares long before its last step, so that it stops early.

    Its ZeRO stage is 1; tests/training/zero/test_average.py has all of them.
    """
    options: dict[str, Any] = {
        "eval_every": 5, "checkpoint_every": 3, "best_metric": "squares/accuracy", "patience": 3,
    }  # fmt: skip
    config = small_run.small_config(data, storage, name, **{**options, **train})
    optim = replace(
        config.optim,
        ema_decay=0.9,
        label_smoothing=0.1,
        decay_latents=True,
        latent_dropout=0.2,
        stochastic_depth=0.1,
    )
    augment = AugmentConfig(token_dropout=0.1)
    sources = [replace(source, augment=augment, balance=0.5) for source in config.sources]
    return replace(config, sources=sources, optim=optim, deepspeed=DeepSpeedConfig(zero_stage=1))


def result_of(folder: Path) -> dict[str, Any]:
    """What result.json says of the end and of the best checkpoint."""
    result = json.loads((folder / "result.json").read_text())
    best = result["best"] | {"checkpoint": result["best"]["checkpoint"].rpartition("/")[2]}
    return {name: result[name] for name in ("exit", "steps", "stopped_early", "metrics")} | {"best": best}


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    """Metrics of the evaluations by their step; the last of a step counts, which is with subsets of modalities."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "train/loss" not in line}


def assert_same_end(found: Path, expected: Path) -> None:
    assert result_of(found) == result_of(expected)
    steps = result_of(expected)["steps"]
    stored, other = (StoredCheckpoint(RunFolder(str(each)).checkpoint(steps)) for each in (found, expected))
    assert stored.progress == other.progress
    assert stored.has_average
    for part in stored.parts:
        values = other.whole(part)
        assert all(torch.equal(tensor, values[name]) for name, tensor in stored.whole(part).items())
    due = [step for step in evaluations(expected) if step % 5 == 0]
    assert [evaluations(found)[step] for step in due] == [evaluations(expected)[step] for step in due]


def test_a_run_stops_early_and_keeps_its_best_checkpoint(undisturbed: Path) -> None:
    folder = undisturbed
    result = result_of(folder)
    best = result["best"]
    assert (result["exit"], result["steps"]) == ("completed", best["step"] + 15)
    assert result["steps"] < small_run.STEPS
    assert result["stopped_early"] == (
        "squares/accuracy has not improved for 3 evaluations (train.patience 3); "
        f"the best is {best['value']:.4g} at step {best['step']}"
    )
    assert (
        best["metrics"]["squares/accuracy"]
        == best["value"]
        == evaluations(folder)[best["step"]]["squares/accuracy"]
    )
    kept = sorted(file.name for file in folder.glob("step-*"))
    assert kept == sorted({best["checkpoint"], *kept[-2:]})
    assert find_model(str(folder)).steps == best["step"]


def test_a_finished_run_is_only_reported(undisturbed: Path, data: Path) -> None:
    folder, screen = undisturbed, StringIO()
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    result = run_training(recipe(data, folder.parent, folder.name), Console(file=screen, width=200))
    assert result["stopped_early"]
    assert "best checkpoint" in screen.getvalue()
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_that_pauses_ends_as_one_that_does_not(undisturbed: Path, data: Path, tmp_path: Path) -> None:
    # At an evaluation, and between two.
    for stop_at in (10, 17, None):
        run_training(recipe(data, tmp_path, "paused", stop_at=stop_at), Console(file=StringIO()))
    assert_same_end(tmp_path / "paused", undisturbed)
    # The evaluation that chooses the best checkpoint is the last one too.
    lines = [json.loads(line) for line in (tmp_path / "paused" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["step"] == 10 and "train/loss" not in line]) == 1


def test_a_run_that_is_killed_ends_as_one_that_is_not(undisturbed: Path, data: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "killed.yaml", tmp_path / "killed"
    file.write_text(to_yaml(recipe(data, tmp_path, "killed")))
    command = [sys.executable, "jobs/train_multimodal.py", "--config", str(file)]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as first:
        while RunFolder(str(folder)).newest_step() == 0:
            assert first.poll() is None, "the run ended before it was killed"
            threading.Event().wait(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (folder / "result.json").exists()
    run_training(recipe(data, tmp_path, "killed"), Console(file=StringIO()))
    assert_same_end(folder, undisturbed)
