"""One MLflow run, written through the client so that no global state decides where numbers go.

Training must not end because a log could not be written: once a run is open, a server that is away, a full disk
or a locked database costs the values of that call and one warning per kind of call. What only a person can mend
(an address nobody serves, a deleted experiment, a run that is not there) is a `UserError` when the run is opened.

A training that restarts from the checkpoint of step s goes on in the same run and logs the steps after s again.
MLflow keeps both values of such a step; the newer one has the later timestamp, and the UI draws both.
"""

import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

# MLflow reads these when it is imported or first used; a value the user has set wins. Left alone it reports usage
# to its makers, and repeats a failed request for minutes, in which training would stand still.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH
from sqlalchemy.exc import SQLAlchemyError

from perceiver_dist.errors import UserError

_SQLITE = "sqlite:///"
_IDENTITY = "identity"
_LOGGING_FAILURES = (MlflowException, OSError, SQLAlchemyError)
_log = logging.getLogger(__name__)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


def absolute_tracking_uri(tracking_uri: str) -> str:
    """Make a local tracking address mean the same file in every process.

    Ray starts workers in other folders than the driver's, where a relative SQLite path is another file. The driver
    calls this before it hands the address on.

    Args:
        tracking_uri: What the user gave: `sqlite:///runs/mlflow.db`, `http://host:5000`, ...

    Returns:
        The same address, with a SQLite path made absolute from the current folder.
    """
    if not tracking_uri.startswith(_SQLITE):
        return tracking_uri
    return _SQLITE + str(Path(tracking_uri.removeprefix(_SQLITE)).absolute())


def new_identity() -> str:
    """Return what no run in any store has been opened with yet."""
    return uuid.uuid4().hex


class MlflowLog:
    """An open MLflow run: metrics, files and the machine's own load go into it until it is closed."""

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None,
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
        identity: str,
        system_metrics: bool = True,
    ) -> None:
        """Open a new run, or go on with an old one.

        Whoever opens a new run writes down `identity` before and the run's id afterwards. If it is killed in between,
        the same call finds the run that nobody knows the id of, instead of leaving it open for ever.

        Args:
            tracking_uri: Where MLflow keeps its records: `sqlite:///path/mlflow.db` on one machine, the address of
                an `mlflow server` for several. A SQLite file and its folder are made when missing.
            experiment: Name of the experiment, made when missing; several processes may do so at once.
            run_name: Name of a new run in the UI.
            run_id: The run to go on with, or None for a new one.
            parameters: Name and value of what the run was configured with. Values beyond MLflow's 6,000
                characters are cut. Written once: a run that goes on keeps its first parameters.
            tags: Name and value of what a new run is to be found by.
            identity: What tells the run from every other one in the experiment, from `new_identity`.
            system_metrics: Whether to record this machine's load as well.

        Raises:
            UserError: No records can be kept at `tracking_uri`, the experiment was deleted, or there is no run
                `run_id`.
        """
        _quiet_mlflow()
        self._tracking_uri = absolute_tracking_uri(tracking_uri)
        self._warned: set[str] = set()
        try:
            with _one_process_at_a_time(self._tracking_uri):
                self._client = MlflowClient(self._tracking_uri)
                if run_id is None:
                    self.run_id = self._new_run(experiment, run_name, {**tags, _IDENTITY: identity})
                    self._write_parameters(parameters)
                else:
                    self.run_id = run_id
                    self._client.update_run(run_id, status="RUNNING")
        except _LOGGING_FAILURES as failure:
            if run_id is None or _is_missing(failure):
                raise UserError(
                    f"tracking: cannot {'open a run' if run_id is None else f'go on with run {run_id}'} at "
                    f"{self._tracking_uri}: {_first_line(failure)}; check tracking.uri and its server"
                ) from failure
            self._warn("going on with the run", failure)
        self._system_metrics: Any = None
        if system_metrics:
            monitor_class: Any = SystemMetricsMonitor  # MLflow leaves it without types
            self._system_metrics = monitor_class(
                self.run_id, resume_logging=run_id is not None, tracking_uri=self._tracking_uri
            )
            self._system_metrics.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of one optimizer step.

        Args:
            step: Optimizer steps done.
            values: Name, such as `fashion/loss`, and value; NaN and infinities are kept.
        """
        now_ms = int(time.time() * 1000)
        entities = [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        try:
            for first in range(0, len(entities), MAX_METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=entities[first : first + MAX_METRICS_PER_BATCH])
        except _LOGGING_FAILURES as failure:
            self._warn("logging metrics", failure)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set what the run is to be found by.

        Args:
            values: Name and value; a tag that is there already gets the new value.
        """
        entities = [RunTag(name, value) for name, value in values.items()]
        try:
            self._client.log_batch(self.run_id, tags=entities)
        except _LOGGING_FAILURES as failure:
            self._warn("setting tags", failure)

    def artifact(self, path: Path) -> None:
        """Copy a file into the run.

        Args:
            path: A local file; it keeps its name.
        """
        try:
            self._client.log_artifact(self.run_id, str(path))
        except _LOGGING_FAILURES as failure:
            self._warn("storing a file", failure)

    def text(self, name: str, content: str) -> None:
        """Store text as a file of the run.

        Args:
            name: File name in the run, such as `config.yaml`.
            content: What the file holds.
        """
        try:
            self._client.log_text(self.run_id, content, name)
        except _LOGGING_FAILURES as failure:
            self._warn("storing text", failure)

    def dictionary(self, name: str, content: Mapping[str, Any]) -> None:
        """Store a mapping as a JSON or YAML file of the run.

        Args:
            name: File name in the run; `.json`, `.yaml` or `.yml` decides the format.
            content: Values that the format can hold.
        """
        try:
            self._client.log_dict(self.run_id, dict(content), name)
        except _LOGGING_FAILURES as failure:
            self._warn("storing a mapping", failure)

    def close(self, status: RunStatus) -> None:
        """End the run: stop recording the machine's load and set how the run went.

        Args:
            status: `FINISHED`, `FAILED` (an error) or `KILLED` (preempted or interrupted).
        """
        if self._system_metrics:
            self._system_metrics.finish()
        try:
            self._client.set_terminated(self.run_id, status)
        except _LOGGING_FAILURES as failure:
            self._warn("closing the run", failure)

    def _new_run(self, experiment: str, run_name: str, tags: Mapping[str, str]) -> str:
        experiment_id = self._experiment_id(experiment)
        found = self._client.search_runs([experiment_id], f"tags.{_IDENTITY} = '{tags[_IDENTITY]}'")
        run = (
            found[0] if found else self._client.create_run(experiment_id, run_name=run_name, tags=dict(tags))
        )
        return str(run.info.run_id)

    def _experiment_id(self, name: str) -> str:
        # To make it first and look second leaves no moment in which another process could come between.
        try:
            return str(self._client.create_experiment(name, _artifact_folder(self._tracking_uri)))
        except MlflowException as failure:
            if failure.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise UserError(
                f"tracking: experiment {name!r} at {self._tracking_uri} was deleted; restore it with "
                "`mlflow experiments restore`, or choose another name"
            )
        return str(found.experiment_id)

    def _write_parameters(self, parameters: Mapping[str, str]) -> None:
        entities = [Param(name, _cut(value)) for name, value in parameters.items()]
        for first in range(0, len(entities), MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self.run_id, params=entities[first : first + MAX_PARAMS_TAGS_PER_BATCH])

    def _warn(self, doing: str, failure: Exception) -> None:
        if doing in self._warned:
            return
        self._warned.add(doing)
        _log.warning(
            "tracking: %s at %s failed: %s; training goes on without it, and this is said once",
            doing,
            self._tracking_uri,
            _first_line(failure),
        )


def _quiet_mlflow() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def _one_process_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Hold a lock beside a local database: two processes that lay out a new one at once leave it half made."""
    if not tracking_uri.startswith(_SQLITE):
        yield
        return
    database = Path(tracking_uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _artifact_folder(tracking_uri: str) -> str | None:
    """Beside a local database, where MLflow would take the current folder; a server decides for itself."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return (Path(tracking_uri.removeprefix(_SQLITE)).parent / "mlflow_artifacts").as_uri()


def _is_missing(failure: Exception) -> bool:
    return isinstance(failure, MlflowException) and failure.error_code == "RESOURCE_DOES_NOT_EXIST"


def _cut(value: str) -> str:
    return value if len(value) <= MAX_PARAM_VAL_LENGTH else value[: MAX_PARAM_VAL_LENGTH - 1] + "…"


def _first_line(failure: Exception) -> str:
    return str(failure).splitlines()[0] if str(failure) else type(failure).__name__
