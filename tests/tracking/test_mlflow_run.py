"""Tests of MLflow runs on a real SQLite store: contents, continued runs, and failures that must not stop training."""

import logging
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from perceiver_dist.errors import UserError
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity
from perceiver_dist.tracking.mlflow_store import RunStatus, absolute_tracking_uri


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the module, since MLflow takes seconds to create a new database."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/deeper/mlflow.db"
    OpenRun(uri, folder).end("FINISHED")
    return uri


class OpenRun(MlflowRun):
    """An MLflow run with a writer of its own."""

    def __init__(self, uri: str, folder: Path, run_id: str | None = None, **changed: object) -> None:
        options: dict[str, Any] = {
            "experiment": "perceiver",
            "run_name": "a-run",
            "parameters": {},
            "tags": {},
        }
        options |= {"identity": new_identity()} | changed
        self.writer = BackgroundWriter(uri, folder / "outbox")
        super().__init__(self.writer, run_id=run_id, **options)

    def end(self, status: RunStatus) -> int:
        """Close the run and the writer; return the number of records that are left."""
        self.close(status)
        return self.writer.close()


def stored_run(uri: str, run: OpenRun) -> Run:
    return MlflowClient(uri).get_run(run.run_id)


def wait_for_system_metrics(uri: str, run: OpenRun, count: int) -> list[int]:
    """Wait for at least `count` measurements of the CPU's utilization, and return their steps."""
    deadline = time.monotonic() + 30
    steps: list[int] = []
    while len(steps) < count and time.monotonic() < deadline:
        history = MlflowClient(uri).get_metric_history(run.run_id, "system/cpu_utilization_percentage")
        steps = [point.step for point in history]
    assert len(steps) >= count
    return steps


def test_a_run_keeps_its_name_parameters_tags_metrics_and_status(store: str, tmp_path: Path) -> None:
    run = OpenRun(store, tmp_path, parameters={"model.depth": "6"}, tags={"commit": "abc"})
    run.metrics(3, {"fashion/loss": 1.5, "clips/loss": float("nan")})
    run.end("FINISHED")
    stored = stored_run(store, run)
    assert (stored.info.run_name, stored.info.status) == ("a-run", "FINISHED")
    assert stored.data.params == {"model.depth": "6"}
    assert stored.data.tags["commit"] == "abc"
    [loss] = MlflowClient(store).get_metric_history(run.run_id, "fashion/loss")
    assert (loss.step, loss.value) == (3, 1.5)


def test_a_resumed_run_is_running_again_and_repeats_the_steps_after_the_checkpoint(
    store: str, tmp_path: Path
) -> None:
    first = OpenRun(store, tmp_path)
    for step in (1, 2, 3):
        first.metrics(step, {"loss": float(step)})
    first.end("FAILED")
    second = OpenRun(store, tmp_path, run_id=first.run_id)
    while stored_run(store, second).info.status != "RUNNING":
        threading.Event().wait(0.02)
    second.metrics(3, {"loss": 3.25})
    second.end("FINISHED")
    history = MlflowClient(store).get_metric_history(first.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (3, 3.25)]


def test_a_run_whose_id_was_lost_is_found_again(store: str, tmp_path: Path) -> None:
    identity = new_identity()
    lost = OpenRun(store, tmp_path, identity=identity, parameters={"model.depth": "6"})
    found = OpenRun(store, tmp_path, identity=identity, parameters={"model.depth": "6"})
    assert found.run_id == lost.run_id
    found.end("FINISHED")
    lost.end("FINISHED")
    assert OpenRun(store, tmp_path).run_id != lost.run_id


def test_metrics_and_parameters_beyond_one_request_all_arrive(store: str, tmp_path: Path) -> None:
    run = OpenRun(store, tmp_path, parameters={f"p{i}": str(i) for i in range(101)})
    run.metrics(1, {f"m{i}": float(i) for i in range(1001)})
    run.end("FINISHED")
    data = stored_run(store, run).data
    assert len(data.params) == 101
    assert data.metrics["m1000"] == 1000.0


def test_a_long_parameter_is_truncated_to_mlflows_limit(store: str, tmp_path: Path) -> None:
    run = OpenRun(store, tmp_path, parameters={"sources": "x" * (MAX_PARAM_VAL_LENGTH + 1)})
    run.end("FINISHED")
    kept = stored_run(store, run).data.params["sources"]
    assert len(kept) == MAX_PARAM_VAL_LENGTH
    assert kept.endswith("x…")


def test_files_are_stored_beside_the_database(store: str, tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"png")
    run = OpenRun(store, tmp_path)
    run.artifact(tmp_path / "curves.png")
    run.text("config.yaml", "model: {}\n")
    run.dictionary("result.json", {"steps": 3})
    run.end("FINISHED")
    folder = Path(store.removeprefix("sqlite:///")).parent / "mlflow_artifacts"
    stored = folder / run.run_id / "artifacts"
    assert sorted(file.name for file in stored.iterdir()) == ["config.yaml", "curves.png", "result.json"]
    assert (stored / "result.json").read_text() == '{\n  "steps": 3\n}'


def test_system_metrics_of_a_continued_run_repeat_no_step(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run = OpenRun(store, tmp_path)
    before = wait_for_system_metrics(store, run, 2)
    run.end("KILLED")
    resumed = OpenRun(store, tmp_path, run_id=run.run_id)
    after = wait_for_system_metrics(store, run, len(before) + 2)
    resumed.end("FINISHED")
    assert after == list(range(len(after)))


def test_a_deleted_run_causes_one_warning_per_kind_and_no_error(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = OpenRun(store, tmp_path)
    MlflowClient(store).delete_run(run.run_id)
    with caplog.at_level(logging.WARNING, "perceiver_dist"):
        run.metrics(1, {"loss": 1.0})
        run.metrics(2, {"loss": 1.0})
        run.tags({"state": "running"})
        run.artifact(tmp_path / "missing.png")
        assert run.end("FINISHED") == 0
    warnings = [record.getMessage() for record in caplog.records]
    # Another thread delivers the records, so the warning about the file may come before or after theirs.
    unread = [line for line in warnings if "missing.png cannot be read" in line]
    assert len(unread) == 1
    rejected = [line for line in warnings if line not in unread]
    for kind, line in zip(("metrics", "tags", "status"), rejected, strict=True):
        assert line.startswith(f"tracking: MLflow at {store} rejects {kind} of run {run.run_id}: The run")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "cannot open a run at http://127.0.0.1:9"),
        ("ftp://host/place", "cannot open a run at ftp://host/place"),
        ("sqlite:////proc/none/mlflow.db", "cannot open a run at sqlite:////proc/none/mlflow.db"),
    ],
)
def test_an_unusable_tracking_uri_is_named(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=message):
        OpenRun(uri, tmp_path)


@pytest.mark.parametrize("continued", [False, True])
def test_a_store_of_another_version_of_mlflow_is_named(store: str, tmp_path: Path, continued: bool) -> None:
    run = OpenRun(store, tmp_path)
    run.end("FINISHED")
    # A copy that MLflow has not opened yet, since it looks at a database once per process.
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "old.db")
    uri = f"sqlite:///{tmp_path}/old.db"
    with sqlite3.connect(tmp_path / "old.db") as tables:
        tables.execute("UPDATE alembic_version SET version_num = 'c48cb773bb87'")
    with pytest.raises(UserError) as caught:
        OpenRun(uri, tmp_path, run_id=run.run_id if continued else None)
    assert type(caught.value) is UserError  # not MlflowUnavailableError, which a search would wait for
    assert str(caught.value).startswith(
        f"tracking: the tables at {uri} are those of another version of MLflow than "
    )
    assert f"run `mlflow db upgrade {uri}`" in str(caught.value)


def test_a_missing_driver_of_a_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot open a run at mssql\+pymssql://host/runs: No module named 'pymssql'"
    ):
        OpenRun("mssql+pymssql://host/runs", tmp_path)


def test_system_metrics_follow_mlflows_variable(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    run = OpenRun(store, tmp_path)
    run.end("FINISHED")
    assert not [name for name in stored_run(store, run).data.metrics if name.startswith("system/")]


def test_records_arrive_although_asynchronous_logging_is_on(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    run = OpenRun(store, tmp_path, parameters={"a": "b"})
    run.metrics(1, {"loss": 1.0})
    run.end("FINISHED")
    assert not [thread for thread in threading.enumerate() if "AsyncLogging" in thread.name]
    assert stored_run(store, run).data.metrics["loss"] == 1.0


def test_continuing_a_missing_run_fails(store: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot continue run 0123 at .*mlflow.db: Run with id=0123 not found"
    ):
        OpenRun(store, tmp_path, run_id="0123")


def test_a_deleted_experiment_is_named_with_the_remedy(store: str, tmp_path: Path) -> None:
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(
        UserError, match=r"experiment 'gone' .* was deleted; restore it with `mlflow experiments"
    ):
        OpenRun(store, tmp_path, experiment="gone")


def test_the_path_of_a_relative_database_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_tracking_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert absolute_tracking_uri("http://host:5000") == "http://host:5000"


def test_a_new_store_is_created_once_and_silently_by_processes_that_start_together(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = f"""
import sys
from pathlib import Path
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity
writer = BackgroundWriter("{uri}", Path("{tmp_path}") / sys.argv[1])
MlflowRun(writer, "shared", "a-run", None, {{}}, {{}}, new_identity()).close("FINISHED")
writer.close()
"""
    command = [sys.executable, "-c", code]
    together = [
        subprocess.Popen([*command, name], stdout=PIPE, stderr=STDOUT, text=True) for name in ("one", "other")
    ]
    assert [process.communicate()[0] for process in together] == ["", ""]
    client = MlflowClient(uri)
    [experiment] = client.search_experiments(filter_string="name = 'shared'")
    assert len(client.search_runs([experiment.experiment_id])) == 2
