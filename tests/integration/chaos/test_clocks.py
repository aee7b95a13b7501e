"""Wall clocks that jump by an hour, and back by two, in all processes of a job: nothing changes.

`libfaketime` gives them the clock; `make chaos` installs it. Monotonic clocks stay as they are, as on a real machine
whose clock is set.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import disturbed_run
import pytest
import small_run
from disturbed_run import STEPPING, Report
from faulty_proxy import wait

pytestmark = pytest.mark.chaos

JUMPS = ("+3600", "-3600", "+0")
"""Seconds from the true time, one after the other."""
SECONDS_BETWEEN_JUMPS = 8.0
"""Several times the interval of heartbeats, and half of that of the lease's renewals."""


@pytest.fixture
def library() -> str:
    package = find_spec("libfaketime")
    if package is None or package.origin is None:
        pytest.skip("libfaketime is not installed: `make chaos` installs it in .chaos")
    [found] = Path(package.origin).parent.rglob("libfaketime.so.1")
    return str(found)


def test_wall_clocks_that_jump_change_nothing(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.write_data(tmp_path / "data")
    options: dict[str, Any] = {"steps": 500, "checkpoint_every": 20, "eval_every": 100, "hang_seconds": 20.0}
    plain, jumping = (
        small_run.small_config(tmp_path / "data", tmp_path, name, **options) for name in ("plain", "jumping")
    )
    assert disturbed_run.start(plain).wait() == 0, disturbed_run.screen_of(plain)
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    for name, value in {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        # Another way in which it waits on condition variables would fake their timeouts.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }.items():
        monkeypatch.setenv(name, value)
    job = disturbed_run.start(jumping)
    while not STEPPING.search(disturbed_run.screen_of(jumping)):
        assert job.poll() is None, disturbed_run.screen_of(jumping)
        wait(0.2)
    jumps = 0
    for jump in JUMPS:
        wait(SECONDS_BETWEEN_JUMPS)
        clock.write_text(f"{jump}\n")
        jumps += job.poll() is None
    assert job.wait() == 0, disturbed_run.screen_of(jumping)
    result = json.loads((disturbed_run.folder_of(jumping) / "result.json").read_text())
    assert (jumps, result["exit"], result["restarts"]) == (len(JUMPS), "completed", 0)
    report = Report()
    disturbed_run.compare(report, disturbed_run.folder_of(jumping), disturbed_run.folder_of(plain))
    assert (report.lost, report.repeated, report.different_steps) == (0, 0, 0)
