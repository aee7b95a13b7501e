"""MLflow runs on a real SQLite store: what is written, what a restart finds, and what a failure may not do."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE, STDOUT

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
    """One store for the module: MLflow takes seconds to lay out a new database."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/deeper/mlflow.db"
    OpenLog(uri, folder).end("FINISHED")
    return uri


class OpenLog(MlflowRun):
    """A log and the delivery that only it uses."""

    def __init__(self, uri: str, folder: Path, run_id: str | None = None, **changed: object) -> None:
        options = {"experiment": "perceiver", "run_name": "a-run", "parameters": {}, "tags": {}}
        options |= {"identity": new_identity()} | changed
        self.writer = BackgroundWriter(uri, folder / "outbox")
        super().__init__(self.writer, run_id=run_id, **options)  # type: ignore[arg-type] # of several types

    def end(self, status: RunStatus) -> int:
        """Close the log and the delivery; return how many records wait."""
        self.close(status)
        return self.writer.close()


def stored_run(uri: str, log: OpenLog) -> Run:
    return MlflowClient(uri).get_run(log.run_id)


def wait_for_load_steps(uri: str, log: OpenLog, least: int) -> list[int]:
    """Steps of the recorded CPU load, asked for until there are at least so many."""
    deadline = time.monotonic() + 30
    steps: list[int] = []
    while len(steps) < least and time.monotonic() < deadline:
        history = MlflowClient(uri).get_metric_history(log.run_id, "system/cpu_utilization_percentage")
        steps = [point.step for point in history]
    assert len(steps) >= least
    return steps


def test_a_run_keeps_its_name_parameters_tags_metrics_and_status(store: str, tmp_path: Path) -> None:
    log = OpenLog(store, tmp_path, parameters={"model.depth": "6"}, tags={"commit": "abc"})
    log.metrics(3, {"fashion/loss": 1.5, "clips/loss": float("nan")})
    log.end("FINISHED")
    run = stored_run(store, log)
    assert (run.info.run_name, run.info.status) == ("a-run", "FINISHED")
    assert run.data.params == {"model.depth": "6"}
    assert run.data.tags["commit"] == "abc"
    [loss] = MlflowClient(store).get_metric_history(log.run_id, "fashion/loss")
    assert (loss.step, loss.value) == (3, 1.5)


def test_a_resumed_run_is_running_again_and_repeats_the_steps_after_the_checkpoint(
    store: str, tmp_path: Path
) -> None:
    first = OpenLog(store, tmp_path)
    for step in (1, 2, 3):
        first.metrics(step, {"loss": float(step)})
    first.end("FAILED")
    second = OpenLog(store, tmp_path, run_id=first.run_id)
    while stored_run(store, second).info.status != "RUNNING":
        threading.Event().wait(0.02)
    second.metrics(3, {"loss": 3.25})
    second.end("FINISHED")
    history = MlflowClient(store).get_metric_history(first.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (3, 3.25)]


def test_a_run_whose_id_was_lost_is_found_again(store: str, tmp_path: Path) -> None:
    identity = new_identity()
    lost = OpenLog(store, tmp_path, identity=identity, parameters={"model.depth": "6"})
    found = OpenLog(store, tmp_path, identity=identity, parameters={"model.depth": "6"})
    assert found.run_id == lost.run_id
    found.end("FINISHED")
    lost.end("FINISHED")
    assert OpenLog(store, tmp_path).run_id != lost.run_id


def test_more_metrics_and_parameters_than_one_request_takes_all_arrive(store: str, tmp_path: Path) -> None:
    log = OpenLog(store, tmp_path, parameters={f"p{i}": str(i) for i in range(101)})
    log.metrics(1, {f"m{i}": float(i) for i in range(1001)})
    log.end("FINISHED")
    data = stored_run(store, log).data
    assert len(data.params) == 101
    assert data.metrics["m1000"] == 1000.0


def test_a_long_parameter_is_cut_to_what_mlflow_takes(store: str, tmp_path: Path) -> None:
    log = OpenLog(store, tmp_path, parameters={"sources": "x" * (MAX_PARAM_VAL_LENGTH + 1)})
    log.end("FINISHED")
    kept = stored_run(store, log).data.params["sources"]
    assert len(kept) == MAX_PARAM_VAL_LENGTH
    assert kept.endswith("x…")


def test_files_are_stored_beside_the_database(store: str, tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"png")
    log = OpenLog(store, tmp_path)
    log.artifact(tmp_path / "curves.png")
    log.text("config.yaml", "model: {}\n")
    log.dictionary("result.json", {"steps": 3})
    log.end("FINISHED")
    folder = Path(store.removeprefix("sqlite:///")).parent / "mlflow_artifacts"
    stored = folder / log.run_id / "artifacts"
    assert sorted(file.name for file in stored.iterdir()) == ["config.yaml", "curves.png", "result.json"]
    assert (stored / "result.json").read_text() == '{\n  "steps": 3\n}'


def test_the_load_of_the_machine_goes_on_where_the_run_stopped(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    log = OpenLog(store, tmp_path)
    before = wait_for_load_steps(store, log, 2)
    log.end("KILLED")
    resumed = OpenLog(store, tmp_path, run_id=log.run_id)
    after = wait_for_load_steps(store, log, len(before) + 2)
    resumed.end("FINISHED")
    assert after == list(range(len(after)))


def test_a_run_that_is_deleted_costs_one_warning_per_kind_and_stops_nothing(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = OpenLog(store, tmp_path)
    MlflowClient(store).delete_run(log.run_id)
    with caplog.at_level(logging.WARNING, "perceiver_dist"):
        log.metrics(1, {"loss": 1.0})
        log.metrics(2, {"loss": 1.0})
        log.tags({"state": "running"})
        log.artifact(tmp_path / "missing.png")
        assert log.end("FINISHED") == 0
    said = [record.getMessage() for record in caplog.records]
    # Records are delivered beside, so the file may be missed before or after the first of them is refused.
    unread = [line for line in said if "missing.png cannot be read" in line]
    assert len(unread) == 1
    refused = [line for line in said if line not in unread]
    for kind, line in zip(("metrics", "tags", "status"), refused, strict=True):
        assert line.startswith(f"tracking: MLflow at {store} refuses {kind} of run {log.run_id}: The run")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "cannot open a run at http://127.0.0.1:9"),
        ("ftp://host/place", "cannot open a run at ftp://host/place"),
        ("sqlite:////proc/none/mlflow.db", "cannot open a run at sqlite:////proc/none/mlflow.db"),
    ],
)
def test_an_address_that_keeps_no_records_is_named(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=message):
        OpenLog(uri, tmp_path)


def test_going_on_with_a_run_that_is_not_there_is_named(store: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot go on with run 0123 at .*mlflow.db: Run with id=0123 not found"
    ):
        OpenLog(store, tmp_path, run_id="0123")


def test_a_deleted_experiment_is_named_with_the_remedy(store: str, tmp_path: Path) -> None:
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(
        UserError, match=r"experiment 'gone' .* was deleted; restore it with `mlflow experiments"
    ):
        OpenLog(store, tmp_path, experiment="gone")


def test_a_relative_database_is_the_same_file_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_tracking_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert absolute_tracking_uri("http://host:5000") == "http://host:5000"


def test_a_new_store_is_laid_out_once_and_without_a_word_by_processes_that_start_together(
    tmp_path: Path,
) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = f"""
import sys
from pathlib import Path
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity
delivery = BackgroundWriter("{uri}", Path("{tmp_path}") / sys.argv[1])
MlflowRun(delivery, "shared", "a-run", None, {{}}, {{}}, new_identity()).close("FINISHED")
delivery.close()
"""
    command = [sys.executable, "-c", code]
    together = [
        subprocess.Popen([*command, name], stdout=PIPE, stderr=STDOUT, text=True) for name in ("one", "other")
    ]
    assert [process.communicate()[0] for process in together] == ["", ""]
    client = MlflowClient(uri)
    [experiment] = client.search_experiments(filter_string="name = 'shared'")
    assert len(client.search_runs([experiment.experiment_id])) == 2
