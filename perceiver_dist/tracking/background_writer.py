"""Background writer that sends a run's record queue to MLflow, so that recording never waits for a server.

Records that MLflow cannot accept now stay on disk. They are retried for as long as the run lives, and again when the
same run is restarted. Delivery is at least once: a batch is sent twice if its response was lost. That does no harm,
since MLflow's SQL stores keep one of two metrics with the same name, step, time and value, and everything else
overwrites itself.
"""

import logging
import sqlite3
from pathlib import Path

from perceiver_dist.errors import UserError
from perceiver_dist.tracking.mlflow_store import absolute_tracking_uri, first_line, quiet_mlflow
from perceiver_dist.tracking.record_queue import Kind, RecordQueue
from perceiver_dist.tracking.sender import RECORDS_AT_ONCE, RecordSender

_log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writer of records for any number of MLflow runs, which delivers them in order in the background.

    One thread sends metrics, tags and states, another sends files, so that neither blocks the other.

    Args:
        tracking_uri: MLflow tracking URI.
        file: File of the queue. Records that are in it already are delivered first.

    Raises:
        UserError: The file cannot be created or is damaged.
    """

    def __init__(self, tracking_uri: str, file: Path) -> None:
        quiet_mlflow()
        self.tracking_uri = absolute_tracking_uri(tracking_uri)
        self._queue = RecordQueue(file)
        self._warned = False
        self._senders = [RecordSender(self._queue, self.tracking_uri, files) for files in (False, True)]
        for sender in self._senders:
            sender.start()

    def put(self, run_id: str, kind: Kind, content: bytes, name: str = "") -> None:
        """Add a record; it survives the end of this process.

        Args:
            run_id: The MLflow run of the record.
            kind: Kind of the record.
            content: See `perceiver_dist.tracking.record_queue.Record`; at most as many metrics as fit one request.
            name: Name of a file.
        """
        try:
            self._queue.put(run_id, kind, name, content)
        except sqlite3.Error as failure:
            self._warn(f"a record cannot be written to {self._queue.file}", failure)
            return
        for sender in self._senders:
            sender.wake.set()

    def next_system_metrics_step(self, run_id: str, at_least: int) -> int:
        """Return the next step number for system metrics, which is never repeated, not even after a restart.

        Args:
            run_id: The MLflow run.
            at_least: The first step that MLflow does not have, as far as is known.
        """
        try:
            return self._queue.next_system_metrics_step(run_id, at_least)
        except sqlite3.Error as failure:
            self._warn(f"the step of system metrics cannot be read from {self._queue.file}", failure)
            return at_least

    def take_over(self, file: Path) -> None:
        """Deliver the records that a killed process left in its queue.

        Args:
            file: The other queue's file; it may be missing.
        """
        if not file.exists():
            return
        try:
            other = RecordQueue(file)
            for files in (False, True):
                while records := other.first(files, RECORDS_AT_ONCE):
                    # Added before they are removed: a process killed in between sends them twice, and loses none.
                    for record in records:
                        self.put(record.run_id, record.kind, record.content, record.name)
                    other.remove(records)
            other.close()
        except (UserError, sqlite3.Error) as failure:
            self._warn(f"the records in {file} cannot be delivered and stay there", failure)

    def close(self) -> int:
        """Wait until everything is delivered, or until MLflow has accepted nothing for some seconds.

        Returns:
            Number of records that are still on disk.
        """
        for sender in self._senders:
            sender.finish()
        for sender in self._senders:
            sender.wait()
        waiting = len(self._queue)
        # Otherwise a sender that gave up may still be in a request, and uses the queue afterwards.
        if not waiting:
            self._queue.close()
        return waiting

    def _warn(self, what: str, failure: BaseException) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "tracking: %s (%s); training continues, and this warning is not repeated",
                what,
                first_line(failure),
            )
