"""Records that wait on disk until MLflow has taken them, in the order in which they were made.

A file of SQLite, since it survives the death of a process in the middle of anything, and since two processes may have
it open for a moment: the tracker of a run whose driver was killed, and the one of the same run started again.
"""

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from perceiver_dist.errors import UserError

Kind = Literal["metrics", "tags", "status", "file"]

_LAYOUT = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS waiting (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, kind TEXT, name TEXT, content BLOB
);
CREATE TABLE IF NOT EXISTS load_step (run_id TEXT PRIMARY KEY, newest INTEGER);
"""
_SECONDS_FOR_THE_OTHER_PROCESS = 30.0


class Record(NamedTuple):
    """What MLflow is to take.

    Attributes:
        number: Place in the order; never given twice.
        run_id: The MLflow run that it belongs to.
        kind: What it is.
        name: Name of a file, else "".
        content: A file's bytes, else JSON: metrics as lists of name, value, milliseconds and step; tags by name; a
            status and when it was reached, in milliseconds.
    """

    number: int
    run_id: str
    kind: Kind
    name: str
    content: bytes


class RecordQueue:
    """The records that wait; any thread may use it.

    Args:
        file: Where they are kept, on a disk of this machine if possible; made when missing.

    Raises:
        UserError: The file cannot be made or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._one_at_a_time = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file, timeout=_SECONDS_FOR_THE_OTHER_PROCESS, isolation_level=None, check_same_thread=False
            )
            self._database.executescript(_LAYOUT)
        except (OSError, sqlite3.Error) as failure:
            raise UserError(
                f"tracking: {file}, where records wait for MLflow, cannot be opened ({failure}); make room or move "
                "the file away"
            ) from failure

    def put(self, run_id: str, kind: Kind, name: str, content: bytes) -> None:
        """Add a record at the end; it is on disk when this returns.

        Args:
            run_id: The MLflow run that it belongs to.
            kind: What it is.
            name: Name of a file, else "".
            content: See `Record`.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._one_at_a_time:
            self._database.execute(
                "INSERT INTO waiting (run_id, kind, name, content) VALUES (?, ?, ?, ?)",
                (run_id, kind, name, content),
            )

    def first(self, files: bool, most: int) -> list[Record]:
        """Return the records that wait longest, and leave them where they are.

        Args:
            files: Whether to return files only, or everything else only.
            most: At most so many.

        Raises:
            sqlite3.Error: The disk is broken.
        """
        with self._one_at_a_time:
            rows = self._database.execute(
                "SELECT * FROM waiting WHERE (kind = 'file') = ? ORDER BY number LIMIT ?", (files, most)
            ).fetchall()
        return [Record(*row) for row in rows]

    def remove(self, records: Sequence[Record]) -> None:
        """Forget records.

        Args:
            records: What was delivered.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._one_at_a_time:
            self._database.execute("BEGIN")
            self._database.executemany(
                "DELETE FROM waiting WHERE number = ?", [(record.number,) for record in records]
            )
            self._database.execute("COMMIT")

    def next_system_metrics_step(self, run_id: str, at_least: int) -> int:
        """Return the next step of the machine's load, which no restart repeats.

        Args:
            run_id: The MLflow run.
            at_least: The first one that MLflow does not have, as far as is known.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._one_at_a_time:
            [(step,)] = self._database.execute(
                "INSERT INTO load_step VALUES (?, ?) ON CONFLICT (run_id) "
                "DO UPDATE SET newest = max(newest + 1, excluded.newest) RETURNING newest",
                (run_id, at_least),
            ).fetchall()
        return int(step)

    def __len__(self) -> int:
        """Return how many records wait."""
        with self._one_at_a_time:
            [(count,)] = self._database.execute("SELECT count(*) FROM waiting").fetchall()
        return int(count)

    def close(self) -> None:
        """Close the file; nothing may be asked of it any more."""
        self._database.close()
