"""A search beside another living Ray and the trace of one that is gone: what its trials took is given back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import small_run
import small_search
import waiting
from ray.util.placement_group import placement_group, remove_placement_group
from server_tables import ServerTables

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.cluster import ray_tables
from perceiver_dist.config.command_line import EXIT_TERMINATED, to_yaml
from perceiver_dist.search.study.search_config import SearchConfig

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("ray_cluster")]

_MAX_WAIT_SECONDS = 300
"""Generous, as it only ends a test that would wait forever."""


TRIALS = 6


wait_until = partial(waiting.wait_until, seconds=_MAX_WAIT_SECONDS)


class Search:
    """A running search job and the tables of its Ray."""

    def __init__(self, storage: Path) -> None:
        small_run.write_data(storage / "data")
        space = {
            "model.latents": [2, 4, 8],
            "model.cross_attends": {"low": 1, "high": 2},
            "optim.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
        }
        options = SearchConfig(
            space=space, trials=TRIALS, scheduler="asha", max_concurrent=2, name="shapes", seed=3
        )
        config = small_search.search_config(storage / "data", storage, options, steps=24)
        self.output = storage / "output.txt"
        self.folder = storage / "shapes"
        self.job = small_search.start(config, storage)
        wait_until(lambda: self._server() or self.job.poll() is not None)
        assert self.job.poll() is None, self.output.read_text()
        self._tables = ServerTables(self._server())

    def processes(self, title: str) -> list[psutil.Process]:
        """Return its processes with this text in their command."""
        found = []
        for process in psutil.Process(self.job.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def _server(self) -> str:
        """Return the address of the server of its Ray, which is in the command of its raylet; "" before it has one."""
        arguments = [text for raylet in self.processes("--gcs-address=") for text in raylet.cmdline()]
        return next((text.partition("=")[2] for text in arguments if text.startswith("--gcs-address=")), "")

    def controllers_ended(self) -> bool:
        """Return whether one of Ray Train's controllers has ended."""
        return self._tables.controllers_ended() is True

    def left_behind(self) -> list[str] | None:
        """Return the placement groups whose creator has ended; None if the server has gone and gives no answer."""
        return self._tables.left_behind()

    def stopped(self) -> int:
        """Return the number of trials that were stopped."""
        return sum(trial["state"] == "stopped" for trial in small_search.trials(self.folder))

    def close(self) -> None:
        """End it, if it has not ended."""
        self._tables.close()
        if self.job.poll() is not None:
            return
        for process in [*psutil.Process(self.job.pid).children(recursive=True), psutil.Process(self.job.pid)]:
            process.kill()
        self.job.wait()


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    """Start a search where Ray's file of the current cluster names one that is gone."""
    (tmp_path / "ray" / "ray").mkdir(parents=True)
    (tmp_path / "ray" / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = Search(tmp_path)
    yield found
    found.close()


def test_stopped_and_killed_trials_give_everything_back(search: Search) -> None:
    wait_until(lambda: search.processes("RayTrainWorker"))
    search.processes("ImplicitFunc")[0].kill()
    wait_until(search.controllers_ended)
    wait_until(lambda: search.left_behind() == [])
    for stopped in range(1, TRIALS + 1):
        wait_until(lambda: search.job.poll() is not None or search.stopped() >= stopped)  # noqa: B023 # called at once
        wait_until(lambda: search.job.poll() is not None or search.left_behind() == [])
    assert search.job.wait() == 0
    states = [trial["state"] for trial in small_search.trials(search.folder)]
    assert set(states) == {"completed", "stopped"}


_OTHER_RAY = """
import ray
print(ray.init(address="local", num_cpus=1, include_dashboard=True).dashboard_url, flush=True)
input()
"""


def test_a_ray_that_is_started_beside_a_run_does_not_cost_it_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    small_run.write_data(tmp_path / "data")
    config = small_run.small_config(tmp_path / "data", tmp_path, "run", steps=1_000_000, log_every=100)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    screen, folder = tmp_path / "output.txt", RunFolder.of(config)
    command = [sys.executable, "jobs/train_multimodal.py", "--config", str(tmp_path / "run.yaml")]
    with screen.open("w") as output, ExitStack() as started:
        run = subprocess.Popen(command, stdout=output, stderr=output)
        started.callback(run.terminate)
        wait_until(lambda: folder.newest_step() or run.poll() is not None)
        other = subprocess.Popen(
            [sys.executable, "-c", _OTHER_RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.callback(other.communicate, "\n")
        assert other.stdout is not None
        # A machine's first dashboard has port 8265, which a Ray without one claims, too.
        assert other.stdout.readline()
        known = folder.newest_step()
        wait_until(lambda: folder.newest_step() >= known + 200 or run.poll() is not None)
    assert run.wait(_MAX_WAIT_SECONDS) == EXIT_TERMINATED
    assert "workers were lost" not in screen.read_text()


def test_a_run_on_a_cluster_says_what_it_waits_for_and_leaves_nothing(tmp_path: Path) -> None:
    small_run.write_data(tmp_path / "data")
    config = small_run.small_config(tmp_path / "data", tmp_path, "run", steps=4)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "jobs/train_multimodal.py", "--config", str(tmp_path / "run.yaml")]
    other = placement_group([{"CPU": 5}], name="run 'other' (workers)")
    ray.get(other.ready())
    before = set(ray_tables.job_names())
    with (tmp_path / "output.txt").open("w") as output:
        run = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    screen = tmp_path / "output.txt"
    wait_until(lambda: "waiting for" in screen.read_text() or run.poll() is not None)
    remove_placement_group(other)
    assert run.wait(_MAX_WAIT_SECONDS) == 0, screen.read_text()
    assert (
        "waiting for 3 CPUs; the cluster has 6 CPUs, free: 1 CPU; run 'other' (workers) of job"
        in screen.read_text()
    )
    [job] = set(ray_tables.job_names()) - before
    assert [one for one in ray_tables.reservations() if one.job == job] == []
