"""One MLflow run, written through the client so that no global state decides where numbers go.

Training must neither end nor wait because a log could not be written: once a run is open, everything goes to a queue
on disk (`perceiver_dist.tracking.record_queue`) and from there to MLflow (`perceiver_dist.tracking.background_writer`).
What only a person can mend (an address nobody serves, a deleted experiment, a run that is not there) is a `UserError`
when the run is first opened.

A training that restarts from the checkpoint of step s goes on in the same run and logs the steps after s again.
MLflow keeps both values of such a step; the newer one has the later timestamp, and the UI draws both.
"""

import json
import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_dist.errors import UserError
from perceiver_dist.strict_json import to_json
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_store import (
    RunStatus,
    first_line,
    is_refusal,
    local_database,
    one_process_at_a_time,
)
from perceiver_dist.tracking.system_metrics import SystemMetrics, system_metrics_steps

# isort: split
# The modules above say to MLflow how long it may take, before it is imported.
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH
from sqlalchemy.exc import SQLAlchemyError

_IDENTITY = "identity"
_LOGGING_FAILURES = (MlflowException, OSError, SQLAlchemyError)
_log = logging.getLogger(__name__)


class MlflowUnavailableError(UserError):
    """No run can be opened now; MLflow does not answer, or answers that it is not well."""


def new_identity() -> str:
    """Return what no run in any store has been opened with yet."""
    return uuid.uuid4().hex


class MlflowRun:
    """An open MLflow run: metrics, files and the machine's own load go into it until it is closed."""

    def __init__(
        self,
        writer: BackgroundWriter,
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
            writer: Brings records to where MLflow keeps them: a SQLite file on one machine, which is made when
                missing, or an `mlflow server` for several.
            experiment: Name of the experiment, made when missing; several processes may do so at once.
            run_name: Name of a new run in the UI.
            run_id: The run to go on with, or None for a new one. It goes on while MLflow is away, too.
            parameters: Name and value of what the run was configured with. Values beyond MLflow's 6,000
                characters are cut. Written once: a run that goes on keeps its first parameters.
            tags: Name and value of what a new run is to be found by.
            identity: What tells the run from every other one in the experiment, from `new_identity`.
            system_metrics: Whether to record this machine's load as well.

        Raises:
            MlflowUnavailableError: A new run cannot be opened now.
            UserError: A new run can never be opened there (the experiment was deleted, no such address), or there is
                no run `run_id`.
        """
        self._writer = writer
        self._tracking_uri = writer.tracking_uri
        self._system_metrics_steps = 0
        try:
            with one_process_at_a_time(self._tracking_uri):
                self._client = MlflowClient(self._tracking_uri)
                if run_id is None:
                    self.run_id = self._new_run(experiment, run_name, {**tags, _IDENTITY: identity})
                    self._write_parameters(parameters)
                else:
                    self.run_id = run_id
                    self._system_metrics_steps = system_metrics_steps(self._client.get_run(run_id))
        except _LOGGING_FAILURES as failure:
            self._must_open(run_id, failure)
        if run_id is not None:
            self._put_status("RUNNING")
        self._load: SystemMetrics | None = None
        if system_metrics:
            self._load = SystemMetrics(self.run_id, self._tracking_uri, self._record_load)
            self._load.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of one optimizer step.

        Args:
            step: Optimizer steps done.
            values: Name, such as `fashion/loss`, and value; NaN and infinities are kept.
        """
        now_ms = int(time.time() * 1000)
        entries = [(name, float(value), now_ms, step) for name, value in values.items()]
        for first in range(0, len(entries), MAX_METRICS_PER_BATCH):
            part = entries[first : first + MAX_METRICS_PER_BATCH]
            self._writer.put(self.run_id, "metrics", json.dumps(part).encode())

    def tags(self, values: Mapping[str, str]) -> None:
        """Set what the run is to be found by.

        Args:
            values: Name and value; a tag that is there already gets the new value.
        """
        self._writer.put(self.run_id, "tags", json.dumps(dict(values)).encode())

    def artifact(self, path: Path) -> None:
        """Copy a file into the run.

        Args:
            path: A local file; it keeps its name, and may be gone when this returns.
        """
        try:
            content = path.read_bytes()
        except OSError as failure:
            _log.warning(
                "tracking: %s cannot be read (%s); training goes on without it", path, failure.strerror
            )
            return
        self.file(path.name, content)

    def text(self, name: str, content: str) -> None:
        """Store text as a file of the run.

        Args:
            name: File name in the run, such as `config.yaml`.
            content: What the file holds.
        """
        self.file(name, content.encode())

    def file(self, name: str, content: bytes) -> None:
        """Store bytes as a file of the run.

        Args:
            name: File name in the run, such as `report.md` or `errors/step-00000007-rank-0.txt`.
            content: What the file holds.
        """
        self._writer.put(self.run_id, "file", content, name)

    def dictionary(self, name: str, content: Mapping[str, Any]) -> None:
        """Store a mapping as a JSON file of the run.

        Args:
            name: File name in the run.
            content: Values that JSON can hold.
        """
        self.text(name, to_json(content, indent=2))

    def close(self, status: RunStatus) -> None:
        """End the run: stop recording the machine's load and set how the run went.

        Whoever opened the writer closes it afterwards.

        Args:
            status: `FINISHED`, `FAILED` (an error) or `KILLED` (preempted or interrupted).
        """
        if self._load:
            self._load.finish()
        self._put_status(status)

    def _put_status(self, status: RunStatus) -> None:
        # With the time, since a run ends when it ends and not when MLflow is back.
        self._writer.put(self.run_id, "status", json.dumps([status, int(time.time() * 1000)]).encode())

    def _record_load(self, values: Mapping[str, float]) -> None:
        self.metrics(self._writer.next_system_metrics_step(self.run_id, self._system_metrics_steps), values)

    def _must_open(self, run_id: str | None, failure: Exception) -> None:
        """Pass over that MLflow is away, if the run is there already.

        Raises:
            UserError: The run cannot be opened.
        """
        refused = is_refusal(failure)
        if run_id is not None and not refused:
            _log.warning(
                "tracking: MLflow at %s is away (%s); the run goes on, and its records wait on disk",
                self._tracking_uri,
                first_line(failure),
            )
            return
        kind = UserError if refused else MlflowUnavailableError
        raise kind(
            f"tracking: cannot {'open a run' if run_id is None else f'go on with run {run_id}'} at "
            f"{self._tracking_uri}: {first_line(failure)}; check tracking.uri and its server"
        ) from failure

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


def _artifact_folder(tracking_uri: str) -> str | None:
    """Beside a local database, where MLflow would take the current folder; a server decides for itself."""
    database = local_database(tracking_uri)
    return None if database is None else (database.parent / "mlflow_artifacts").as_uri()


def _cut(value: str) -> str:
    return value if len(value) <= MAX_PARAM_VAL_LENGTH else value[: MAX_PARAM_VAL_LENGTH - 1] + "…"
