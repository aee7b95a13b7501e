"""False alarms: a machine with far too much to do, and storages that answer after a minute, are no hang."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import disturbed_run
import pytest
import remote_run
import small_run
from disturbed_run import STEPPING
from faulty_proxy import wait

pytestmark = pytest.mark.chaos

LOAD = 20
SECONDS_WITHOUT_ANSWER = 60.0


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Run processes that always want a core."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_machine_with_far_too_much_to_do_is_no_hang(tmp_path: Path) -> None:
    small_run.write_data(tmp_path / "data")
    config = small_run.small_config(tmp_path / "data", tmp_path, "loaded", eval_every=20)
    with load(LOAD):
        job = disturbed_run.start(config)
        assert job.wait() == 0, disturbed_run.screen_of(config)
    result = json.loads((disturbed_run.folder_of(config) / "result.json").read_text())
    assert result["restarts"] == 0
    assert not (disturbed_run.folder_of(config) / "errors").exists()
    assert "is slow" not in disturbed_run.screen_of(config)


def test_storages_and_mlflow_that_answer_after_a_minute_are_no_hang(tmp_path: Path) -> None:
    with remote_run.remote_place(tmp_path) as place:
        for where in ("s3", "web", "mlflow"):
            proxy = place.mlflow if where == "mlflow" else place.stores[where]
            config = place.config_of(where, steps=200)
            job = place.start(config)
            while not STEPPING.search(place.screen(where)):
                assert job.poll() is None, place.screen(where)
                wait(0.2)
            with proxy.faulty("late") as fault:
                wait(SECONDS_WITHOUT_ANSWER)
            assert job.wait() == 0, place.screen(where)
            assert fault.hits, f"nothing was asked of {where}"
            result = json.loads((place.folder(where) / "result.json").read_text())
            assert (result["exit"], result["restarts"]) == ("completed", 0), place.screen(where)
            # A run that has ended before MLflow answers again leaves its records in a queue.
            assert place.start(config).wait() == 0, place.screen(where)
            place.check_mlflow(where)
