"""Thread that sends records from the queue to MLflow, with retries while the server is unavailable."""

import json
import logging
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from perceiver_dist.tracking.mlflow_store import first_line, is_permanent, one_process_at_a_time
from perceiver_dist.tracking.record_queue import Record, RecordQueue

# isort: split
# mlflow_store, imported above, sets environment variables that MLflow reads when it is imported.
from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

RECORDS_AT_ONCE = 500
"""Records read from the queue at a time: with two or more metrics each they fill one of MLflow's requests (1,000)."""
SECONDS_WITHOUT_PROGRESS = 10.0
"""How long the end of a run waits for an MLflow that accepts nothing. A restart delivers the rest."""
_SECONDS_BETWEEN_DELIVERIES = 0.5
"""Pause after a delivery, so that the metrics of many steps go in one request."""
_FIRST_PAUSE_SECONDS = 1.0
"""Pause before the first retry; it doubles with each one."""
_MAX_PAUSE_SECONDS = 30.0
"""Longest pause between retries: how late a server's return may be noticed."""
_log = logging.getLogger(__name__)


class ServerUnavailableError(Exception):
    """MLflow does not accept a record now, but may accept it later."""


class RecordRejectedError(Exception):
    """MLflow will never accept a record."""


class RecordSender(threading.Thread):
    """Thread that sends either the files or all other records of a queue to MLflow.

    Args:
        queue: The queue.
        tracking_uri: Absolute MLflow tracking URI.
        files: Whether to send files, or everything else.
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
        self._unavailable = False
        self._rejected: set[str] = set()

    def run(self) -> None:
        """Deliver until `finish` was called and nothing is left, or until `wait` gives up."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._given_up.is_set():
            # Both are read before the queue is, so that a record added meanwhile causes another round.
            self.wake.clear()
            last_round = self._finishing.is_set()
            try:
                found = self._deliver_batch()
            except (ServerUnavailableError, sqlite3.Error) as failure:
                self._warn_unavailable(failure)
                self._sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            self._unavailable = False
            if found:
                self._finishing.wait(_SECONDS_BETWEEN_DELIVERIES)
            elif last_round:
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
        """Wait until nothing is left, or until there was no progress for `SECONDS_WITHOUT_PROGRESS`."""
        while not self._ended.is_set() and self._progress.wait(SECONDS_WITHOUT_PROGRESS):
            self._progress.clear()
        self._given_up.set()

    def _sleep(self, seconds: float) -> None:
        # At the end of a run retries stay frequent, since `wait` gives up after some seconds without progress.
        if self._finishing.is_set():
            self._given_up.wait(_FIRST_PAUSE_SECONDS)
        else:
            self._finishing.wait(seconds)

    def _deliver_batch(self) -> bool:
        records = self._queue.first(self._files, RECORDS_AT_ONCE)
        for together in requests_of(records):
            self._deliver(together)
            # Only now: a process killed before this sends them again, and none is lost.
            self._queue.remove(together)
            self._progress.set()
        return bool(records)

    def _deliver(self, records: Sequence[Record]) -> None:
        try:
            self._send(records)
        except RecordRejectedError as rejection:
            if len(records) > 1:
                # One invalid record makes MLflow reject the whole request, so each is sent alone.
                for record in records:
                    self._deliver([record])
            else:
                self._warn_rejected(records[0], rejection)

    def _send(self, records: Sequence[Record]) -> None:
        try:
            if self._client is None:
                with one_process_at_a_time(self._tracking_uri):
                    self._client = MlflowClient(self._tracking_uri)
            _call(self._client, records)
        except Exception as failure:
            # Artifact stores raise the errors of their own cloud clients, so all others count as unavailable.
            if is_permanent(failure):
                raise RecordRejectedError(first_line(failure)) from failure
            raise ServerUnavailableError(first_line(failure)) from failure

    def _warn_unavailable(self, failure: BaseException) -> None:
        if not self._unavailable:
            self._unavailable = True
            _log.warning(
                "tracking: MLflow at %s is unavailable (%s); training continues, and records are queued in %s",
                self._tracking_uri,
                first_line(failure),
                self._queue.file,
            )

    def _warn_rejected(self, record: Record, rejection: RecordRejectedError) -> None:
        if record.kind not in self._rejected:
            self._rejected.add(record.kind)
            _log.warning(
                "tracking: MLflow at %s rejects %s of run %s: %s; such records are dropped, and this warning is not "
                "repeated",
                self._tracking_uri,
                f"{record.kind} {record.name}".strip(),
                record.run_id,
                rejection,
            )


def requests_of(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Group records into requests, in order: consecutive metrics of a run together, everything else alone.

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
    """Send records to MLflow in one request."""
    first = records[0]
    # Synchronous whatever MLFLOW_ENABLE_ASYNC_LOGGING says: what is sent leaves the queue on disk.
    if first.kind == "metrics":
        values = [Metric(*fields) for record in records for fields in json.loads(record.content)]
        client.log_batch(first.run_id, metrics=values, synchronous=True)
    elif first.kind == "tags":
        tags: Mapping[str, str] = json.loads(first.content)
        client.log_batch(
            first.run_id, tags=[RunTag(name, value) for name, value in tags.items()], synchronous=True
        )
    elif first.kind == "status":
        status, at_ms = json.loads(first.content)
        if status == "RUNNING":
            client.update_run(first.run_id, status=status)
        else:
            client.set_terminated(first.run_id, status, end_time=at_ms)
    else:
        # MLflow's client uploads files by path only.
        with tempfile.TemporaryDirectory() as scratch:
            folder, _, name = first.name.rpartition("/")
            (Path(scratch) / name).write_bytes(first.content)
            client.log_artifact(first.run_id, f"{scratch}/{name}", folder or None)
