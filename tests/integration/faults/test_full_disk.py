"""A training run on a full disk: it keeps training, reports each failed save, and resumes once there is space."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import small_run
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import TrackingConfig
from perceiver_dist.training.driver import run_training

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 32 MB: enough for the run's files and a few checkpoints of 5 MB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this machine does not allow mounting a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def train(storage: Path, stop_at: int) -> tuple[dict[str, Any], list[str]]:
    """Train with a checkpoint of 5 MB every ten steps; return the result and the lines of output."""
    config = small_run.small_config(storage.parent / "shards", storage, "run", stop_at=stop_at)
    model = replace(config.model, width=128)
    tracking = TrackingConfig(uri=f"sqlite:///{storage.parent}/mlflow.db")
    screen = StringIO()
    result = run_training(replace(config, model=model, tracking=tracking), Console(file=screen))
    return result, screen.getvalue().splitlines()


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_on_a_full_disk_keeps_training_and_ends_as_failed(disk: Path) -> None:
    small_run.write_data(disk.parent / "shards")
    train(disk, stop_at=20)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    (disk / "filler").write_bytes(bytes(free - 2 * MEGABYTE))
    result, lines = train(disk, stop_at=40)
    reason = "could not be written (No space left on device)"
    assert f"checkpoint of step 30 {reason}; training continues, the newest is step 20" in lines
    assert f"training failed after step 40: checkpoint of step 40 {reason}; the newest is step 20" in lines
    assert result == json.loads((disk / "run" / "result.json").read_text())
    assert (result["exit"], result["steps"], result["restarts"]) == ("failed", 40, 0)
    assert result["metrics"]["squares/samples"] == 21
    assert sorted(folder.name for folder in disk.glob("run/step-*")) == ["step-00000010", "step-00000020"]
    (disk / "filler").unlink()
    assert train(disk, stop_at=40)[0]["exit"] == "completed"
    assert RunFolder(str(disk / "run")).newest_step() == 40
