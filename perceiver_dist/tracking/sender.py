"""A thread that sends records from the queue to MLflow, for as long as there are any or more may come."""

import json
import logging
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from perceiver_dist.tracking.mlflow_store import first_line, is_refusal, one_process_at_a_time
from perceiver_dist.tracking.record_queue import Record, RecordQueue

# isort: split
# The modules above say to MLflow how long it may take, before it is imported.
from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

RECORDS_AT_ONCE = 500
SECONDS_WITHOUT_PROGRESS = 10.0
"""How long the end of a run waits for an MLflow that takes nothing."""
_SECONDS_BETWEEN_DELIVERIES = 0.5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class ServerUnavailableError(Exception):
    """MLflow does not take a record now, and may do so later."""


class RecordRejectedError(Exception):
    """MLflow will never take a record."""


class RecordSender(threading.Thread):
    """Takes the records of one way to MLflow, as long as there are any or more may come.

    Args:
        queue: Where records wait.
        tracking_uri: Where MLflow keeps its records; absolute.
        files: Whether it takes files, or everything else.
    """

    def __init__(self, queue: RecordQueue, tracking_uri: str, files: bool) -> None:
        super().__init__(name="files to MLflow" if files else "records to MLflow", daemon=True)
        self.wake = threading.Event()
        self._queue = queue
        self._tracking_uri = tracking_uri
        self._files = files
        self._client: MlflowClient | None = None
        self._finishing, self._given_up, self._ended = (threading.Event() for _ in range(3))
        self._progress = threading.Event()
        self._away = False
        self._refused: set[str] = set()

    def run(self) -> None:
        """Deliver until told to finish and nothing is left, or given up."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._given_up.is_set():
            self.wake.clear()
            last_look = self._finishing.is_set()
            try:
                found = self._deliver_some()
            except (ServerUnavailableError, sqlite3.Error) as failure:
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
        records = self._queue.first(self._files, RECORDS_AT_ONCE)
        for together in requests_of(records):
            self._deliver(together)
            self._queue.remove(together)
            self._progress.set()
        return bool(records)

    def _deliver(self, records: Sequence[Record]) -> None:
        try:
            self._send(records)
        except RecordRejectedError as refusal:
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
                raise RecordRejectedError(first_line(failure)) from failure
            raise ServerUnavailableError(first_line(failure)) from failure

    def _say_away(self, failure: BaseException) -> None:
        if not self._away:
            self._away = True
            _log.warning(
                "tracking: MLflow at %s takes nothing now (%s); training goes on, records wait in %s",
                self._tracking_uri,
                first_line(failure),
                self._queue.file,
            )

    def _say_refused(self, record: Record, refusal: RecordRejectedError) -> None:
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
            folder, _, name = first.name.rpartition("/")
            (Path(scratch) / name).write_bytes(first.content)
            client.log_artifact(first.run_id, f"{scratch}/{name}", folder or None)
