"""MLflow run, written through MLflow's client so that no global state (`mlflow.start_run`) decides where records go.

Training must neither fail nor wait because MLflow is unavailable. Once a run is open, everything goes to a queue on
disk (`perceiver_dist.tracking.record_queue`) and from there to MLflow (`perceiver_dist.tracking.background_writer`).
What only a person can fix (a wrong address, a deleted experiment, a missing run) is a `UserError` when the run is
opened.

A training that resumes from the checkpoint of step s continues the same MLflow run and logs the steps after s again.
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
    is_permanent,
    local_database,
    one_process_at_a_time,
    wrong_schema,
)
from perceiver_dist.tracking.system_metrics import SystemMetrics, system_metrics_steps

# isort: split
# mlflow_store, imported above, sets environment variables that MLflow reads when it is imported.
import mlflow
from mlflow.entities import Param
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH
from sqlalchemy.exc import SQLAlchemyError

_IDENTITY = "identity"
"""Tag that identifies a run whose id was not written down."""
_LOGGING_FAILURES = (MlflowException, OSError, SQLAlchemyError, ImportError)
"""An ImportError: the driver of a database, as of PostgreSQL, is not installed."""
_log = logging.getLogger(__name__)


class MlflowUnavailableError(UserError):
    """No run can be opened now, since MLflow is unavailable; a retry may succeed."""


def new_identity() -> str:
    """Return a new, globally unique identity for a run."""
    return uuid.uuid4().hex


class MlflowRun:
    """Open MLflow run, which records metrics, tags, files and system metrics until it is closed."""

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
        """Open a new run, or continue an existing one.

        The caller stores `identity` before it opens a new run, and the run's id afterwards. If it is killed in between,
        the same call with the same identity finds the run, instead of leaving it open forever and opening another.

        Args:
            writer: Sends records to MLflow's store: a SQLite file on one machine, which is created if missing, or an
                `mlflow server` for several machines.
            experiment: Name of the experiment, created if missing; several processes may do so at once.
            run_name: Name of a new run in the UI.
            run_id: Id of the run to continue, or None for a new one. Continuing works while MLflow is unavailable.
            parameters: Names and values of the run's configuration. Values longer than MLflow's 6,000 characters
                are truncated. Written once: a run that is continued keeps its first parameters.
            tags: Names and values of the tags of a new run.
            identity: Unique identity of a new run, from `new_identity`.
            system_metrics: Whether to record this machine's system metrics.

        Raises:
            MlflowUnavailableError: A new run cannot be opened now.
            UserError: A new run can never be opened there (the experiment was deleted, or the URI is wrong), or run
                `run_id` does not exist.
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
            self._check_can_continue(run_id, failure)
        if run_id is not None:
            # The run has ended before, and MLflow would show it as ended until the next end.
            self._put_status("RUNNING")
        self._system_metrics: SystemMetrics | None = None
        if system_metrics and _system_metrics_wanted():
            self._system_metrics = SystemMetrics(self.run_id, self._tracking_uri, self._record_system_metrics)
            self._system_metrics.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of one optimizer step.

        Args:
            step: Optimizer steps done.
            values: Names, such as `fashion/loss`, and values; NaN and infinities are kept.
        """
        now_ms = int(time.time() * 1000)
        entries = [(name, float(value), now_ms, step) for name, value in values.items()]
        for first in range(0, len(entries), MAX_METRICS_PER_BATCH):
            part = entries[first : first + MAX_METRICS_PER_BATCH]
            self._writer.put(self.run_id, "metrics", json.dumps(part).encode())

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags.

        Args:
            values: Names and values; the value of an existing tag is replaced.
        """
        self._writer.put(self.run_id, "tags", json.dumps(dict(values)).encode())

    def artifact(self, path: Path) -> None:
        """Store a copy of a local file as an artifact of the run.

        Args:
            path: The file; the artifact has its name. It may be deleted once this returns.
        """
        try:
            content = path.read_bytes()
        except OSError as failure:
            _log.warning(
                "tracking: %s cannot be read (%s); training continues without it", path, failure.strerror
            )
            return
        self.file(path.name, content)

    def text(self, name: str, content: str) -> None:
        """Store text as an artifact of the run.

        Args:
            name: File name in the run, such as `config.yaml`.
            content: Content of the file.
        """
        self.file(name, content.encode())

    def file(self, name: str, content: bytes) -> None:
        """Store bytes as an artifact of the run.

        Args:
            name: File name in the run, such as `report.md` or `errors/step-00000007-rank-0.txt`.
            content: Content of the file.
        """
        self._writer.put(self.run_id, "file", content, name)

    def dictionary(self, name: str, content: Mapping[str, Any]) -> None:
        """Store a mapping as a JSON artifact of the run.

        Args:
            name: File name in the run.
            content: Values that JSON can hold.
        """
        self.text(name, to_json(content, indent=2))

    def close(self, status: RunStatus) -> None:
        """End the run: stop measuring system metrics and set the status.

        The caller closes the writer afterwards.

        Args:
            status: `FINISHED`, `FAILED` (an error) or `KILLED` (preempted or interrupted).
        """
        if self._system_metrics:
            self._system_metrics.finish()
        self._put_status(status)

    def _put_status(self, status: RunStatus) -> None:
        # With the time, since the run ends now, even if MLflow only hears of it later.
        self._writer.put(self.run_id, "status", json.dumps([status, int(time.time() * 1000)]).encode())

    def _record_system_metrics(self, values: Mapping[str, float]) -> None:
        self.metrics(self._writer.next_system_metrics_step(self.run_id, self._system_metrics_steps), values)

    def _check_can_continue(self, run_id: str | None, failure: Exception) -> None:
        """Continue without MLflow if it is unavailable and the run has an id already.

        Raises:
            UserError: The run cannot be opened.
        """
        if wrong_schema(failure):
            uri = self._tracking_uri
            raise UserError(
                f"tracking: the tables at {uri} are those of another version of MLflow than {mlflow.__version__}; if "
                f"they are older, make a backup and run `mlflow db upgrade {uri}`; if they are newer, install that "
                "version; or set tracking.uri to another store"
            ) from failure
        permanent = is_permanent(failure)
        if run_id is not None and not permanent:
            _log.warning(
                "tracking: MLflow at %s is unavailable (%s); the run continues, and its records are queued on disk",
                self._tracking_uri,
                first_line(failure),
            )
            return
        kind = UserError if permanent else MlflowUnavailableError
        raise kind(
            f"tracking: cannot {'open a run' if run_id is None else f'continue run {run_id}'} at "
            f"{self._tracking_uri}: {first_line(failure)}; check tracking.uri (or MLFLOW_TRACKING_URI) and its server"
        ) from failure

    def _new_run(self, experiment: str, run_name: str, tags: Mapping[str, str]) -> str:
        experiment_id = self._experiment_id(experiment)
        found = self._client.search_runs([experiment_id], f"tags.{_IDENTITY} = '{tags[_IDENTITY]}'")
        run = (
            found[0] if found else self._client.create_run(experiment_id, run_name=run_name, tags=dict(tags))
        )
        return str(run.info.run_id)

    def _experiment_id(self, name: str) -> str:
        # Creating it before looking for it is atomic: no other process can create it between the two.
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
        entities = [Param(name, _truncated(value)) for name, value in parameters.items()]
        for first in range(0, len(entities), MAX_PARAMS_TAGS_PER_BATCH):
            part = entities[first : first + MAX_PARAMS_TAGS_PER_BATCH]
            self._client.log_batch(self.run_id, params=part, synchronous=True)


def _system_metrics_wanted() -> bool:
    """Return whether MLflow's variable leaves system metrics on; it turns them off only if it is set."""
    wanted: Any = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    return not wanted.is_set() or bool(wanted.get())


def _artifact_folder(tracking_uri: str) -> str | None:
    """Return the folder beside a local database; MLflow would use the working directory. A server uses its own."""
    database = local_database(tracking_uri)
    return None if database is None else (database.parent / "mlflow_artifacts").as_uri()


def _truncated(value: str) -> str:
    return value if len(value) <= MAX_PARAM_VAL_LENGTH else value[: MAX_PARAM_VAL_LENGTH - 1] + "…"
