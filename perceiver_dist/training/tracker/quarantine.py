"""Quarantine: the record of a run's bad samples, one line each, however often a sample is read."""

import json
from collections import Counter
from collections.abc import Iterable

from pipelines.storage.files import read_text, write_text
from pipelines.units.unit_maker import BadSample


class Quarantine:
    """The bad samples of a run, as in quarantine.jsonl.

    Args:
        uri: Path or URI of the file, which an earlier start of the run may have written; None to keep no file.
    """

    def __init__(self, uri: str | None = None) -> None:
        self._uri = uri
        text = read_text(uri) if uri is not None else None
        entries = [json.loads(line) for line in (text or "").splitlines()]
        self._entries = {(entry["source"], entry["shard"], entry["key"]): entry for entry in entries}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._entries)

    def add(self, source: str, unit: int | None, samples: Iterable[BadSample]) -> None:
        """Record samples. Entries that exist stay as they are.

        Args:
            source: Name of the source.
            unit: The unit that contained them; None if they were not read as part of a unit.
            samples: The samples.
        """
        for shard, key, reason in samples:
            entry = {"source": source, "shard": shard, "key": key, "reason": reason, "unit": unit}
            # A sample is read again in later epochs and after a restart; its first unit stays.
            self._entries.setdefault((source, shard, key), entry)

    def save(self, retry_seconds: float) -> None:
        """Write the file, if there are samples.

        Args:
            retry_seconds: Seconds for which to retry while remote storage fails.

        Raises:
            OSError: Storage fails.
        """
        if self._entries and self._uri is not None:
            write_text(self._uri, self.text(), retry_seconds)

    def text(self) -> str:
        """Return the content of the file, sorted by source, shard and key, so that it does not depend on timing."""
        return "".join(json.dumps(self._entries[name]) + "\n" for name in sorted(self._entries))

    def reasons(self, source: str, limit: int) -> list[tuple[str, int]]:
        """Return the most frequent reasons of a source's samples, each with its number of samples.

        Args:
            source: Name of the source.
            limit: Maximum number of reasons.
        """
        counts = Counter(entry["reason"] for name, entry in self._entries.items() if name[0] == source)
        return sorted(counts.items(), key=lambda reason: (-reason[1], reason[0]))[:limit]
