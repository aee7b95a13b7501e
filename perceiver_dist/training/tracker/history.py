"""History of a run: what was logged, in memory and in metrics.jsonl.

On a local disk a save appends to the file; written whole at every checkpoint, the file of a long run would cost in
proportion to the square of its length. Object stores have no appending, so there the whole file is written. A process
that is killed while it appends leaves a last line without an end, which is dropped when the file is read.
"""

import os

from perceiver_dist.training.tracker.logged_metrics import LoggedMetrics, from_jsonl, to_jsonl
from pipelines.storage.files import open_storage, read_text, write_text
from pipelines.storage.retry import is_local


class History:
    """Logged metrics of a run.

    Args:
        uri: Path or URI of metrics.jsonl; what it holds is the beginning of the history.

    Attributes:
        entries: What was logged, in order.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.entries: list[LoggedMetrics] = from_jsonl(read_text(uri) or "")
        # How many of the entries the file holds, in how many bytes. The first save writes it whole.
        self._stored = self._bytes = 0

    def add(self, metrics: LoggedMetrics) -> None:
        """Add what was logged.

        Args:
            metrics: The metrics.
        """
        self.entries.append(metrics)

    def drop_after(self, step: int) -> None:
        """Drop what was logged after a step, which will be logged again.

        Args:
            step: Optimizer steps taken.
        """
        self.entries = [metrics for metrics in self.entries if metrics.step <= step]
        self._stored = self._bytes = 0

    def save(self, retry_seconds: float) -> None:
        """Write what the file does not hold yet.

        Args:
            retry_seconds: Seconds for which to retry while remote storage fails.

        Raises:
            OSError: Storage fails.
        """
        number = len(self.entries)
        new = to_jsonl(self.entries[self._stored :]).encode()
        if self._stored and is_local(self._uri) and self._is_unchanged():
            with open(self._path, "ab") as file:
                file.write(new)
        else:
            new = to_jsonl(self.entries).encode()
            self._bytes = 0
            write_text(self._uri, new.decode(), retry_seconds)
        self._stored, self._bytes = number, self._bytes + len(new)

    @property
    def _path(self) -> str:
        return open_storage(self._uri)[1]

    def _is_unchanged(self) -> bool:
        """Return whether the file is as the last save has left it; one that failed may have written a part."""
        return os.path.exists(self._path) and os.path.getsize(self._path) == self._bytes
