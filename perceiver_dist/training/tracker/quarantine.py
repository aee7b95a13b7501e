"""The record of samples that could not be used, one line for each however often it is met."""

import json
from collections import Counter
from collections.abc import Iterable

from pipelines.units.unit_maker import BadSample


class Quarantine:
    """The bad samples of a run, as its folder holds them in quarantine.jsonl.

    Args:
        text: What the file held when the run was started before; None or "" for nothing.
    """

    def __init__(self, text: str | None) -> None:
        entries = [json.loads(line) for line in (text or "").splitlines()]
        self._entries = {(entry["source"], entry["shard"], entry["key"]): entry for entry in entries}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._entries)

    def add(self, source: str, unit: int | None, samples: Iterable[BadSample]) -> None:
        """Record samples; those that are recorded already stay as they are.

        Args:
            source: Name of the source.
            unit: The unit in which they were met; None if it was not one that met them.
            samples: The samples.
        """
        for shard, key, reason in samples:
            entry = {"source": source, "shard": shard, "key": key, "reason": reason, "unit": unit}
            self._entries.setdefault((source, shard, key), entry)

    def text(self) -> str:
        """Return the file's content, in the order of sources, shards and keys whoever met a sample first."""
        return "".join(json.dumps(self._entries[name]) + "\n" for name in sorted(self._entries))

    def reasons(self, source: str, most: int) -> list[tuple[str, int]]:
        """Return the most frequent reasons of a source's samples, each with its number of samples.

        Args:
            source: Name of the source.
            most: How many reasons to return.
        """
        counts = Counter(entry["reason"] for name, entry in self._entries.items() if name[0] == source)
        return sorted(counts.items(), key=lambda reason: (-reason[1], reason[0]))[:most]
