"""From a run's outbox to MLflow, in the background: whoever records something never waits for a server.

What MLflow cannot take now waits on disk and is tried again for as long as the run lives, and after that when the same
run is started again. A batch may reach MLflow twice, if the answer to it was lost; its stores keep one of two metrics
that agree in name, step, time and value, and everything else overwrites itself.
"""

import fcntl
import json
import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

# MLflow reads these when it is imported or first used; a value the user has set wins. Left alone it reports usage
# to its makers, and repeats a failed request for minutes, in which a run could not be opened or closed.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from perceiver_dist.errors import UserError
from perceiver_dist.outbox import Kind, Outbox, Record

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

SECONDS_WITHOUT_PROGRESS = 10.0
"""How long the end of a run waits for an MLflow that takes nothing."""
_SECONDS_BETWEEN_DELIVERIES = 0.5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_RECORDS_AT_ONCE = 500
_SQLITE = "sqlite:///"
_REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_log = logging.getLogger(__name__)


class AwayError(Exception):
    """MLflow does not take a record now, and may do so later."""


class RefusedError(Exception):
    """MLflow will never take a record."""


def absolute_tracking_uri(tracking_uri: str) -> str:
    """Make a local tracking address mean the same file in every process.

    Ray starts workers in other folders than the driver's, where a relative SQLite path is another file. The driver
    calls this before it hands the address on.

    Args:
        tracking_uri: What the user gave: `sqlite:///runs/mlflow.db`, `http://host:5000`, ...

    Returns:
        The same address, with a SQLite path made absolute from the current folder.
    """
    database = local_database(tracking_uri)
    return tracking_uri if database is None else _SQLITE + str(database.absolute())


def local_database(tracking_uri: str) -> Path | None:
    """Return the file of a SQLite store, None for every other address.

    Args:
        tracking_uri: Where MLflow keeps its records.
    """
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def is_refusal(failure: BaseException) -> bool:
    """Return whether MLflow itself said that it will not do what it was asked to, now or later.

    Args:
        failure: What a call to MLflow raised.
    """
    return isinstance(failure, MlflowException) and failure.error_code in _REFUSALS


def first_line(failure: BaseException) -> str:
    """Return what went wrong, in one line.

    Args:
        failure: An exception.
    """
    return str(failure).splitlines()[0] if str(failure) else type(failure).__name__


@contextmanager
def one_process_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Hold a lock beside a local database: two processes that lay out a new one at once leave it half made.

    Args:
        tracking_uri: Where MLflow keeps its records; nothing is locked for a server.
    """
    database = local_database(tracking_uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Delivery:
    """Takes records of any number of MLflow runs, and delivers them in order in the background.

    Metrics, tags and states go one way, files another, so that neither waits for the other.

    Args:
        tracking_uri: Where MLflow keeps its records.
        file: Where records wait. What waits there from before is delivered first.

    Raises:
        UserError: The file cannot be made or is damaged.
    """

    def __init__(self, tracking_uri: str, file: Path) -> None:
        _quiet_mlflow()
        self.tracking_uri = absolute_tracking_uri(tracking_uri)
        self._outbox = Outbox(file)
        self._said = False
        self._couriers = [_Courier(self._outbox, self.tracking_uri, files) for files in (False, True)]
        for courier in self._couriers:
            courier.start()

    def put(self, run_id: str, kind: Kind, content: bytes, name: str = "") -> None:
        """Add a record; it is on disk when this returns.

        Args:
            run_id: The MLflow run that it belongs to.
            kind: What it is.
            content: See `perceiver_dist.outbox.Record`; at most as many metrics as one request takes.
            name: Name of a file.
        """
        try:
            self._outbox.put(run_id, kind, name, content)
        except sqlite3.Error as failure:
            self._warn(f"a record cannot be written to {self._outbox.file}", failure)
            return
        for courier in self._couriers:
            courier.wake.set()

    def next_load_step(self, run_id: str, at_least: int) -> int:
        """Return the next step of the machine's load, which no restart repeats.

        Args:
            run_id: The MLflow run.
            at_least: The first one that MLflow does not have, as far as is known.
        """
        try:
            return self._outbox.next_load_step(run_id, at_least)
        except sqlite3.Error as failure:
            self._warn(f"the machine's load cannot be numbered in {self._outbox.file}", failure)
            return at_least

    def take_over(self, file: Path) -> None:
        """Deliver what another process left in its outbox when it was killed.

        Args:
            file: The other outbox; nothing is done if it is not there.
        """
        if not file.exists():
            return
        try:
            other = Outbox(file)
            for files in (False, True):
                while records := other.first(files, _RECORDS_AT_ONCE):
                    for record in records:
                        self.put(record.run_id, record.kind, record.content, record.name)
                    other.remove(records)
            other.close()
        except (UserError, sqlite3.Error) as failure:
            self._warn(f"records that wait in {file} are left there", failure)

    def close(self) -> int:
        """Wait until everything is delivered, or until MLflow has taken nothing for some seconds.

        Returns:
            How many records still wait on disk.
        """
        for courier in self._couriers:
            courier.finish()
        for courier in self._couriers:
            courier.wait()
        waiting = len(self._outbox)
        if not waiting:
            self._outbox.close()
        return waiting

    def _warn(self, what: str, failure: BaseException) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "tracking: %s (%s); training goes on, and this is said once", what, first_line(failure)
            )


class _Courier(threading.Thread):
    """Takes the records of one way to MLflow, as long as there are any or more may come."""

    def __init__(self, outbox: Outbox, tracking_uri: str, files: bool) -> None:
        super().__init__(name="files to MLflow" if files else "records to MLflow", daemon=True)
        self.wake = threading.Event()
        self._outbox = outbox
        self._tracking_uri = tracking_uri
        self._files = files
        self._client: MlflowClient | None = None
        self._finishing, self._given_up, self._ended = (threading.Event() for _ in range(3))
        self._progress = threading.Event()
        self._away = False
        self._refused: set[str] = set()

    def run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._given_up.is_set():
            self.wake.clear()
            last_look = self._finishing.is_set()
            try:
                found = self._deliver_some()
            except (AwayError, sqlite3.Error) as failure:
                self._say_away(failure)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            self._away = False
            if found:
                self._finishing.wait(_SECONDS_BETWEEN_DELIVERIES)
            elif last_look:
                break
            else:
                self.wake.wait()
        self._ended.set()
        self._progress.set()

    def finish(self) -> None:
        """End when nothing is left."""
        self._finishing.set()
        self.wake.set()

    def wait(self) -> None:
        """Return when nothing is left, or when there was no progress for too long."""
        while not self._ended.is_set() and self._progress.wait(SECONDS_WITHOUT_PROGRESS):
            self._progress.clear()
        self._given_up.set()

    def _rest(self, seconds: float) -> None:
        if self._finishing.is_set():
            self._given_up.wait(_FIRST_PAUSE_SECONDS)
        else:
            self._finishing.wait(seconds)

    def _deliver_some(self) -> bool:
        records = self._outbox.first(self._files, _RECORDS_AT_ONCE)
        for together in requests_of(records):
            self._deliver(together)
            self._outbox.remove(together)
            self._progress.set()
        return bool(records)

    def _deliver(self, records: Sequence[Record]) -> None:
        try:
            self._send(records)
        except RefusedError as refusal:
            if len(records) > 1:
                for record in records:
                    self._deliver([record])
            else:
                self._say_refused(records[0], refusal)

    def _send(self, records: Sequence[Record]) -> None:
        try:
            if self._client is None:
                with one_process_at_a_time(self._tracking_uri):
                    self._client = MlflowClient(self._tracking_uri)
            _call(self._client, records)
        except Exception as failure:
            # The store of the run's files decides what else is raised: every cloud's client has errors of its own.
            if is_refusal(failure):
                raise RefusedError(first_line(failure)) from failure
            raise AwayError(first_line(failure)) from failure

    def _say_away(self, failure: BaseException) -> None:
        if not self._away:
            self._away = True
            _log.warning(
                "tracking: MLflow at %s takes nothing now (%s); training goes on, records wait in %s",
                self._tracking_uri,
                first_line(failure),
                self._outbox.file,
            )

    def _say_refused(self, record: Record, refusal: RefusedError) -> None:
        if record.kind not in self._refused:
            self._refused.add(record.kind)
            _log.warning(
                "tracking: MLflow at %s refuses %s of run %s: %s; they are left out, and this is said once",
                self._tracking_uri,
                f"{record.kind} {record.name}".strip(),
                record.run_id,
                refusal,
            )


def requests_of(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield records that go in one request, in order: neighbouring metrics of a run together, all else alone.

    Args:
        records: Records in their order.
    """
    together: list[Record] = []
    metrics = 0
    for record in records:
        more = len(json.loads(record.content)) if record.kind == "metrics" else 0
        joins = (
            bool(together)
            and record.kind == together[0].kind == "metrics"
            and record.run_id == together[0].run_id
            and metrics + more <= MAX_METRICS_PER_BATCH
        )
        if together and not joins:
            yield together
            together, metrics = [], 0
        together = [*together, record]
        metrics += more
    if together:
        yield together


def _call(client: MlflowClient, records: Sequence[Record]) -> None:
    """Make one request to MLflow."""
    first = records[0]
    if first.kind == "metrics":
        values = [Metric(*fields) for record in records for fields in json.loads(record.content)]
        client.log_batch(first.run_id, metrics=values)
    elif first.kind == "tags":
        tags: Mapping[str, str] = json.loads(first.content)
        client.log_batch(first.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    elif first.kind == "status":
        status, at_ms = json.loads(first.content)
        if status == "RUNNING":
            client.update_run(first.run_id, status=status)
        else:
            client.set_terminated(first.run_id, status, end_time=at_ms)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / first.name).write_bytes(first.content)
            client.log_artifact(first.run_id, f"{scratch}/{first.name}")


def _quiet_mlflow() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
