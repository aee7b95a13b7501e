"""Log of the samples that were trained on, step by step, so that the order can be audited."""

import json

from pipelines.storage.files import read_text, write_text


class SampleLog:
    """The samples of every step of a run, as in samples.jsonl.

    Args:
        uri: Path or URI of the file, which an earlier start of the run may have written.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        entries = [json.loads(line) for line in (read_text(uri) or "").splitlines()]
        self._steps: dict[int, dict[int, list[str]]] = {
            entry["step"]: {int(unit): keys for unit, keys in entry["units"].items()} for entry in entries
        }

    def add(self, step: int, unit: int, keys: list[str]) -> None:
        """Add a unit.

        Args:
            step: The optimizer step, from 0.
            unit: Number of the unit.
            keys: Shard and key of each sample, in the order of the batch.
        """
        self._steps.setdefault(step, {})[unit] = keys

    def drop_from(self, step: int) -> None:
        """Drop the steps from a number on, which will be taken again.

        Args:
            step: The first of them.
        """
        self._steps = {number: units for number, units in self._steps.items() if number < step}

    def save(self, retry_seconds: float) -> None:
        """Write the file, if there are samples: a line per step, in order.

        Args:
            retry_seconds: Seconds for which to retry while remote storage fails.

        Raises:
            OSError: Storage fails.
        """
        if self._steps:
            lines = [
                json.dumps({"step": step, "units": {str(unit): units[unit] for unit in sorted(units)}}) + "\n"
                for step, units in sorted(self._steps.items())
            ]
            write_text(self._uri, "".join(lines), retry_seconds)
