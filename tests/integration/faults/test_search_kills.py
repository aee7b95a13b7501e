"""A search killed three times at random moments against one left alone: `make test-long`."""

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
    """Start, or go on with, a search of six shapes of which asha stops some; two trials at a time."""
    space = {
        "model.latents": [2, 4, 8],
        "model.cross_attends": {"low": 1, "high": 2},
        "optim.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    }
    options = SearchConfig(space=space, trials=6, scheduler="asha", max_concurrent=2, name="shapes", seed=3)
    config = small_search.search_config(storage.parent / "data", storage, options, steps=24)
    storage.mkdir(exist_ok=True)
    return storage / "shapes", small_search.start(config, storage)


def test_a_search_killed_three_times_has_the_trials_decisions_and_winner_of_one_left_alone(
    tmp_path: Path,
) -> None:
    small_run.write_data(tmp_path / "data")
    began = time.monotonic()
    alone, run = search(tmp_path / "alone")
    assert run.wait() == 0
    seconds = time.monotonic() - began
    moments = random.Random(os.environ.get("FAULT_SEED"))  # noqa: S311
    kills = 0
    while kills < KILLS:
        killed, run = search(tmp_path / "killed")
        try:
            run.wait(timeout=moments.uniform(0.15, 0.35) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            kills += 1
        else:
            break
    killed, run = search(tmp_path / "killed")
    assert run.wait() == 0
    print(f"{kills} kills; {[(trial['state'], trial['scores']) for trial in small_search.outcome(alone)]}")  # noqa: T201
    assert kills == KILLS
    assert {trial["state"] for trial in small_search.outcome(alone)} == {"completed", "stopped"}
    assert small_search.outcome(killed) == small_search.outcome(alone)
    assert best(killed) == best(alone)


def best(folder: Path) -> str:
    """Return the winner's configuration, with the storage folder taken out."""
    return (folder / "best.yaml").read_text().replace(str(folder.parent), "STORAGE")
