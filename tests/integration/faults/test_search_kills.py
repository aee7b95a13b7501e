"""A search that is killed three times at random moments, compared with an undisturbed one."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small_run
import small_search

from perceiver_dist.search.study.search_config import SearchConfig

KILLS = 3

pytestmark = pytest.mark.long


def search(storage: Path) -> tuple[Path, "subprocess.Popen[str]"]:
    """Start or resume a search of six shapes, two at a time, some of which ASHA stops; return its folder and job."""
    space = {
        "model.latents": [2, 4, 8],
        "model.cross_attends": {"low": 1, "high": 2},
        "optim.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    }
    options = SearchConfig(space=space, trials=6, scheduler="asha", max_concurrent=2, name="shapes", seed=3)
    config = small_search.search_config(storage.parent / "data", storage, options, steps=24)
    storage.mkdir(exist_ok=True)
    return storage / "shapes", small_search.start(config, storage)


def test_a_search_killed_three_times_has_the_trials_decisions_and_winner_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    small_run.write_data(tmp_path / "data")
    began = time.monotonic()
    undisturbed, run = search(tmp_path / "undisturbed")
    assert run.wait() == 0
    seconds = time.monotonic() - began
    moments = random.Random(os.environ.get("FAULT_SEED"))  # noqa: S311
    kills = 0
    while kills < KILLS:
        killed, run = search(tmp_path / "killed")
        try:
            # Three kills within the time that the undisturbed search took.
            run.wait(timeout=moments.uniform(0.15, 0.35) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            kills += 1
        else:
            break
    killed, run = search(tmp_path / "killed")
    assert run.wait() == 0
    expected = small_search.outcome(undisturbed)
    print(f"{kills} kills; {[(trial['state'], trial['scores']) for trial in expected]}")  # noqa: T201
    assert kills == KILLS
    assert {trial["state"] for trial in expected} == {"completed", "stopped"}
    assert small_search.outcome(killed) == expected
    assert best(killed) == best(undisturbed)


def best(folder: Path) -> str:
    """Return the winner's configuration, with the storage folder replaced by a placeholder."""
    return (folder / "best.yaml").read_text().replace(str(folder.parent), "STORAGE")
