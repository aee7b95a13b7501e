"""A terminal that is closed, or whose connection breaks, while a run shows its progress there."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_run

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import to_yaml

pytestmark = pytest.mark.runs

_JOB = str(Path("jobs/train_multimodal.py").absolute())
_SECONDS = 120
"""Longer than a run takes to save and end, or to do the rest of its steps."""


def _show(terminal: int, until: threading.Event) -> None:
    """Read what is written to a terminal, as its emulator does, and close it at an event."""
    os.set_blocking(terminal, False)
    while not until.wait(0.05):
        with suppress(OSError):  # nothing to read yet, or, since nohup(1) writes to a file, nobody who writes
            os.read(terminal, 1 << 16)
    os.close(terminal)


@pytest.mark.parametrize("prefix", [[], ["nohup"]])
def test_a_run_saves_when_its_terminal_is_closed_and_continues_with_nohup(
    prefix: list[str], tmp_path: Path
) -> None:
    small_run.write_data(tmp_path / "data")
    folder = tmp_path / "run"
    # Alone it would take minutes.
    options: dict[str, Any] = {"stop_at": 60} if prefix else {"steps": 10_000}
    config = small_run.small_config(tmp_path / "data", tmp_path, "run", **options)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    ours, theirs = os.openpty()
    job = subprocess.Popen(
        [*prefix, sys.executable, _JOB, "--config", str(tmp_path / "run.yaml")],
        cwd=tmp_path,  # where nohup(1) writes its file
        # A session of its own, which this terminal controls and informs of its end.
        preexec_fn=lambda: os.login_tty(theirs),  # the child has no other threads yet
        pass_fds=(theirs,),
    )
    os.close(theirs)
    closed = threading.Event()
    shown = threading.Thread(target=_show, args=(ours, closed))
    shown.start()
    while RunFolder(str(folder)).newest_step() == 0:
        assert job.poll() is None, "the run ended before its terminal"
        closed.wait(0.05)
    family = psutil.Process(job.pid).children(recursive=True)
    closed.set()
    status = job.wait(timeout=_SECONDS)
    shown.join()
    result = json.loads((folder / "result.json").read_text())
    assert (status, result["exit"]) == ((0, "completed") if prefix else (143, "preempted"))
    assert result["steps"] == RunFolder(str(folder)).newest_step()
    _, left = psutil.wait_procs(family, timeout=20)
    assert left == []
