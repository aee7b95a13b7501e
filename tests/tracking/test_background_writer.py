"""Tests of the background writer with a real MLflow server that is suspended, killed and restarted meanwhile."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH
from served_mlflow import ServedMlflow

from perceiver_dist.errors import UserError
from perceiver_dist.tracking import sender
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity
from perceiver_dist.tracking.record_queue import Record, RecordQueue
from perceiver_dist.tracking.sender import requests_of


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedMlflow]:
    with ServedMlflow(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def server(served: ServedMlflow) -> Iterator[ServedMlflow]:
    """The module's server, which is resumed after each test."""
    yield served
    served.resume()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at short intervals, so that a server's return is noticed at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "SECONDS_WITHOUT_PROGRESS", 60.0)
    monkeypatch.setattr(sender, "_FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(sender, "_MAX_PAUSE_SECONDS", 0.2)


def open_run(writer: BackgroundWriter, run_id: str | None = None) -> MlflowRun:
    return MlflowRun(writer, "perceiver", "a-run", run_id, {}, {}, new_identity(), system_metrics=False)


def loss_steps(server: ServedMlflow, run_id: str) -> list[tuple[int, float]]:
    history = MlflowClient(server.address).get_metric_history(run_id, "loss")
    assert [point.timestamp for point in history] == sorted(point.timestamp for point in history)
    return [(point.step, point.value) for point in history]


def files_of(server: ServedMlflow, run_id: str) -> list[str]:
    return sorted(file.path for file in MlflowClient(server.address).list_artifacts(run_id))


def expected(steps: int) -> list[tuple[int, float]]:
    return [(step, step / 8) for step in range(steps)]


def test_records_made_while_the_server_hangs_arrive_once_and_in_order(
    server: ServedMlflow, tmp_path: Path
) -> None:
    writer = BackgroundWriter(server.address, tmp_path / "outbox.sqlite")
    run = open_run(writer)
    for step in range(30):
        if step == 10:
            server.pause()
        # The server does not respond from step 10 to 20: a call that waited for it would never return.
        if step == 20:
            server.resume()
        run.metrics(step, {"loss": step / 8})
        run.text(f"{step}.txt", str(step))
    run.close("FINISHED")
    assert writer.close() == 0
    assert loss_steps(server, run.run_id) == expected(30)
    assert files_of(server, run.run_id) == sorted(f"{step}.txt" for step in range(30))
    assert MlflowClient(server.address).get_run(run.run_id).info.status == "FINISHED"


def test_a_run_can_be_closed_and_continued_while_the_server_is_down(
    server: ServedMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "outbox.sqlite"
    writer = BackgroundWriter(server.address, file)
    run = open_run(writer)
    run.metrics(0, {"loss": 0.0})
    server.kill()
    run.metrics(1, {"loss": 1 / 8})
    run.close("KILLED")
    monkeypatch.setattr(sender, "SECONDS_WITHOUT_PROGRESS", 0.5)
    waiting = writer.close()
    assert waiting in (2, 3)
    writer = BackgroundWriter(server.address, file)
    again = open_run(writer, run.run_id)
    again.metrics(2, {"loss": 2 / 8})
    again.text("result.json", "{}")
    server.start()
    again.close("FINISHED")
    monkeypatch.setattr(sender, "SECONDS_WITHOUT_PROGRESS", 60.0)
    assert writer.close() == 0
    assert loss_steps(server, run.run_id) == expected(3)
    assert files_of(server, run.run_id) == ["result.json"]
    assert MlflowClient(server.address).get_run(run.run_id).info.status == "FINISHED"


def test_records_of_a_killed_process_are_delivered_by_the_next_one(
    server: ServedMlflow, tmp_path: Path
) -> None:
    run_id = open_run(BackgroundWriter(server.address, tmp_path / "first")).run_id
    server.pause()
    code = f"""
import os, signal
from pathlib import Path
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun
writer = BackgroundWriter("{server.address}", Path("{tmp_path}") / "outbox.sqlite")
run = MlflowRun(writer, "perceiver", "a-run", "{run_id}", {{}}, {{}}, "", system_metrics=False)
for step in range(50):
    run.metrics(step, {{"loss": step / 8}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}  # to notice the server's silence
    subprocess.run([sys.executable, "-c", code], env=environment, check=False, stderr=subprocess.DEVNULL)
    server.resume()
    assert BackgroundWriter(server.address, tmp_path / "outbox.sqlite").close() == 0
    assert loss_steps(server, run_id) == expected(50)


def test_two_processes_that_deliver_the_same_records_store_each_once(
    server: ServedMlflow, tmp_path: Path
) -> None:
    file = tmp_path / "outbox.sqlite"
    first, second = BackgroundWriter(server.address, file), BackgroundWriter(server.address, file)
    run = open_run(first)
    for step in range(200):
        run.metrics(step, {"loss": step / 8})
    run.close("FINISHED")
    assert (first.close(), second.close()) == (0, 0)
    assert loss_steps(server, run.run_id) == expected(200)


def test_records_of_a_killed_trial_are_taken_over(server: ServedMlflow, tmp_path: Path) -> None:
    writer = BackgroundWriter(server.address, tmp_path / "search.sqlite")
    run = open_run(writer)
    left = RecordQueue(tmp_path / "trial.sqlite")
    left.put(run.run_id, "metrics", "", json.dumps([("loss", 0.0, 1, 0)]).encode())
    left.put(run.run_id, "file", "left.txt", b"left")
    writer.take_over(tmp_path / "trial.sqlite")
    writer.take_over(tmp_path / "missing.sqlite")
    assert len(left) == 0
    assert writer.close() == 0
    assert loss_steps(server, run.run_id) == expected(1)
    assert files_of(server, run.run_id) == ["left.txt"]
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_file_that_cannot_be_stored_does_not_delay_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "SECONDS_WITHOUT_PROGRESS", 0.5)
    (tmp_path / "mlflow_artifacts").write_text("a file where a folder must be")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    writer = BackgroundWriter(store, tmp_path / "outbox.sqlite")
    run = open_run(writer)
    run.text("config.yaml", "model: {}")
    run.metrics(0, {"loss": 0.0})
    run.close("FINISHED")
    with caplog.at_level(logging.WARNING, "perceiver_dist"):
        assert writer.close() == 1
    stored = MlflowClient(store).get_run(run.run_id)
    assert (stored.data.metrics, stored.info.status) == ({"loss": 0.0}, "FINISHED")


def test_an_invalid_metric_is_dropped_alone(server: ServedMlflow, tmp_path: Path) -> None:
    writer = BackgroundWriter(server.address, tmp_path / "outbox.sqlite")
    run = open_run(writer)
    server.pause()
    run.metrics(0, {"loss": 0.0})
    run.metrics(1, {"loss!": 0.0})
    run.metrics(1, {"loss": 1 / 8})
    server.resume()
    assert writer.close() == 0
    assert loss_steps(server, run.run_id) == expected(2)


def test_a_damaged_queue_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(
        UserError, match=r"outbox.sqlite, the queue of records for MLflow, cannot be opened \(file"
    ):
        RecordQueue(tmp_path / "outbox.sqlite")


def test_records_of_several_threads_are_all_queued(tmp_path: Path) -> None:
    queue = RecordQueue(tmp_path / "outbox.sqlite")

    def put_all(name: str) -> None:
        for _ in range(100):
            queue.put("run", "tags", name, b"{}")

    threads = [threading.Thread(target=put_all, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiting = queue.first(files=False, limit=1000)
    assert sorted(record.name for record in waiting) == sorted("abcd" * 100)
    queue.remove(waiting[:399])
    assert queue.first(files=False, limit=1000) == waiting[399:]


kinds = st.sampled_from(["metrics", "tags", "status", "file"])


@given(
    st.lists(st.tuples(st.sampled_from("ab"), kinds, st.integers(1, MAX_METRICS_PER_BATCH)), max_size=20),
)
def test_requests_keep_the_order_and_the_limit(made: list[tuple[str, str, int]]) -> None:
    records = [
        Record(number, run, kind, "", json.dumps([0] * metrics).encode())  # type: ignore[arg-type] # a kind
        for number, (run, kind, metrics) in enumerate(made)
    ]
    requests = list(requests_of(records))
    assert [record for request in requests for record in request] == records
    for request in requests:
        assert len({record.run_id for record in request}) == 1
        if len(request) > 1:
            assert {record.kind for record in request} == {"metrics"}
            assert sum(len(json.loads(record.content)) for record in request) <= MAX_METRICS_PER_BATCH
    for one, other in pairwise(requests):
        if {record.kind for record in one + other} == {"metrics"} and one[0].run_id == other[0].run_id:
            together = [*one, other[0]]
            assert sum(len(json.loads(record.content)) for record in together) > MAX_METRICS_PER_BATCH
