"""Queue on disk of records for MLflow, in the order in which they were made.

MLflow's own asynchronous logging keeps its queue in memory and drops a batch whose request fails, so that records are
lost when the process dies or the server is down. This queue is a SQLite file, which survives a process that is killed
at any moment. Two processes may have it open for a short time: the tracker of a run whose driver was killed, and that
of the same run after a restart.
"""

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from perceiver_dist.errors import UserError

Kind = Literal["metrics", "tags", "status", "file"]

# With a write-ahead log one process can write while another reads. NORMAL does not wait for the disk at each record: a
# power cut may lose the newest records, but a killed process loses none.
_LAYOUT = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS waiting (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, kind TEXT, name TEXT, content BLOB
);
CREATE TABLE IF NOT EXISTS load_step (run_id TEXT PRIMARY KEY, newest INTEGER);
"""
_LOCK_TIMEOUT_SECONDS = 30.0
"""How long to wait for the other process's transaction. Each takes milliseconds, so 30 s is enough for a slow disk."""


class Record(NamedTuple):
    """A record for MLflow.

    Attributes:
        number: Position in the order; never reused.
        run_id: The MLflow run of the record.
        kind: Kind of the record.
        name: Name of a file, else "".
        content: Bytes of a file, else JSON: metrics as lists of name, value, time in milliseconds and step; tags by
            name; a status and its time in milliseconds.
    """

    number: int
    run_id: str
    kind: Kind
    name: str
    content: bytes


class RecordQueue:
    """Thread-safe queue of the records that MLflow has not accepted yet.

    Args:
        file: File of the queue, if possible on a local disk; created if missing.

    Raises:
        UserError: The file cannot be created or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file, timeout=_LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.executescript(_LAYOUT)
        except (OSError, sqlite3.Error) as failure:
            raise UserError(
                f"tracking: {file}, the queue of records for MLflow, cannot be opened ({failure}); free disk space or "
                "move the file away"
            ) from failure

    def put(self, run_id: str, kind: Kind, name: str, content: bytes) -> None:
        """Add a record at the end; it survives the end of this process.

        Args:
            run_id: The MLflow run of the record.
            kind: Kind of the record.
            name: Name of a file, else "".
            content: See `Record`.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._lock:
            self._database.execute(
                "INSERT INTO waiting (run_id, kind, name, content) VALUES (?, ?, ?, ?)",
                (run_id, kind, name, content),
            )

    def first(self, files: bool, limit: int) -> list[Record]:
        """Return the oldest records without removing them.

        Args:
            files: Whether to return files only, or everything else only.
            limit: Maximum number of records.

        Raises:
            sqlite3.Error: The disk is broken.
        """
        with self._lock:
            rows = self._database.execute(
                "SELECT * FROM waiting WHERE (kind = 'file') = ? ORDER BY number LIMIT ?", (files, limit)
            ).fetchall()
        return [Record(*row) for row in rows]

    def remove(self, records: Sequence[Record]) -> None:
        """Remove records.

        Args:
            records: The records that were delivered.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._lock:
            self._database.execute("BEGIN")
            self._database.executemany(
                "DELETE FROM waiting WHERE number = ?", [(record.number,) for record in records]
            )
            self._database.execute("COMMIT")

    def next_system_metrics_step(self, run_id: str, at_least: int) -> int:
        """Return the next step number for system metrics, which is never repeated, not even after a restart.

        Args:
            run_id: The MLflow run.
            at_least: The first step that MLflow does not have, as far as is known.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._lock:
            [(step,)] = self._database.execute(
                "INSERT INTO load_step VALUES (?, ?) ON CONFLICT (run_id) "
                "DO UPDATE SET newest = max(newest + 1, excluded.newest) RETURNING newest",
                (run_id, at_least),
            ).fetchall()
        return int(step)

    def __len__(self) -> int:
        """Return the number of records."""
        with self._lock:
            [(count,)] = self._database.execute("SELECT count(*) FROM waiting").fetchall()
        return int(count)

    def close(self) -> None:
        """Close the file; the queue cannot be used afterwards."""
        self._database.close()
