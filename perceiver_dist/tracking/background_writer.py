"""Sends what waits in a run's record queue to MLflow, in the background: recording never waits for a server.

What MLflow cannot take now waits on disk and is tried again for as long as the run lives, and after that when the same
run is started again. A batch may reach MLflow twice, if the answer to it was lost; its stores keep one of two metrics
that agree in name, step, time and value, and everything else overwrites itself.
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
    """Takes records of any number of MLflow runs, and delivers them in order in the background.

    Metrics, tags and states go one way, files another, so that neither waits for the other.

    Args:
        tracking_uri: Where MLflow keeps its records.
        file: Where records wait. What waits there from before is delivered first.

    Raises:
        UserError: The file cannot be made or is damaged.
    """

    def __init__(self, tracking_uri: str, file: Path) -> None:
        quiet_mlflow()
        self.tracking_uri = absolute_tracking_uri(tracking_uri)
        self._queue = RecordQueue(file)
        self._said = False
        self._senders = [RecordSender(self._queue, self.tracking_uri, files) for files in (False, True)]
        for sender in self._senders:
            sender.start()

    def put(self, run_id: str, kind: Kind, content: bytes, name: str = "") -> None:
        """Add a record; it is on disk when this returns.

        Args:
            run_id: The MLflow run that it belongs to.
            kind: What it is.
            content: See `perceiver_dist.tracking.record_queue.Record`; at most as many metrics as one request takes.
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
        """Return the next step of the machine's load, which no restart repeats.

        Args:
            run_id: The MLflow run.
            at_least: The first one that MLflow does not have, as far as is known.
        """
        try:
            return self._queue.next_system_metrics_step(run_id, at_least)
        except sqlite3.Error as failure:
            self._warn(f"the machine's load cannot be numbered in {self._queue.file}", failure)
            return at_least

    def take_over(self, file: Path) -> None:
        """Deliver what another process left in its queue when it was killed.

        Args:
            file: The other queue; nothing is done if it is not there.
        """
        if not file.exists():
            return
        try:
            other = RecordQueue(file)
            for files in (False, True):
                while records := other.first(files, RECORDS_AT_ONCE):
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
        for sender in self._senders:
            sender.finish()
        for sender in self._senders:
            sender.wait()
        waiting = len(self._queue)
        if not waiting:
            self._queue.close()
        return waiting

    def _warn(self, what: str, failure: BaseException) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "tracking: %s (%s); training goes on, and this is said once", what, first_line(failure)
            )
