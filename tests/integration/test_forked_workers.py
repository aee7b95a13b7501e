"""Runs whose workers are forked from a template: a killed worker is replaced, a killed driver leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import small_run

from perceiver_dist.config.command_line import to_yaml

pytestmark = pytest.mark.runs

GOLDEN = Path(__file__).parent / "golden.json"
_MAX_WAIT_SECONDS = 240
"""Generous, as it only ends a test that would wait forever."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    small_run.write_data(folder)
    return folder


def start(data: Path, storage: Path) -> "subprocess.Popen[bytes]":
    config = small_run.small_config(data, storage, "run")
    file = storage / "run.yaml"
    file.write_text(to_yaml(config))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "jobs/train_multimodal.py", "--config", str(file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def wait_for_checkpoint(job: "subprocess.Popen[bytes]", storage: Path) -> None:
    for _ in range(_MAX_WAIT_SECONDS * 10):
        assert job.poll() is None
        if list((storage / "run").glob("step-*/manifest.json")):
            return
        threading.Event().wait(0.1)
    raise AssertionError("no checkpoint came")


def ranks(job: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The ranks of a job, with the worker template as their parent."""
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in process.cmdline()[0]:
                assert "worker_template.py" in " ".join(process.parent().cmdline())
                found.append(process)
        except (IndexError, psutil.NoSuchProcess):
            continue
    return found


def test_a_killed_rank_is_replaced_with_the_same_losses(data: Path, tmp_path: Path) -> None:
    job = start(data, tmp_path)
    wait_for_checkpoint(job, tmp_path)
    ranks(job)[-1].kill()
    assert job.wait(_MAX_WAIT_SECONDS) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["restarts"] == 1
    assert small_run.losses(tmp_path / "run")[:10] == pytest.approx(
        json.loads(GOLDEN.read_text())["losses"][:10], rel=1e-3
    )


def test_a_killed_driver_leaves_no_process_behind(data: Path, tmp_path: Path) -> None:
    job = start(data, tmp_path)
    wait_for_checkpoint(job, tmp_path)
    started = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    job.wait()
    _, left = psutil.wait_procs(started, timeout=_MAX_WAIT_SECONDS)
    assert left == []
