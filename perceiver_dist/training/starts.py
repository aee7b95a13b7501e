"""How often the workers of a run are started, and when that is enough.

A run of a week loses many workers, and a fault in the code kills them at the same step each time. The two are told
apart by the checkpoints: a start counts as a failure until a new checkpoint is written.
"""

from collections import Counter


class Starts:
    """Counts the starts since the newest checkpoint.

    Args:
        max_failures: Starts in a row that may come to nothing before the run is given up.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._starts: Counter[str] = Counter()
        self._last_error = "a process was lost"

    def count(self, source: str, step: int) -> str:
        """Count a start; every source's dataset is made anew at each.

        Args:
            source: The source whose dataset is made.
            step: The step that the start goes on from.

        Returns:
            Why there should be no start, one line; "" if there should.
        """
        self._starts[source] += 1
        failures = self._starts[source] - 1
        if failures <= self._max_failures:
            return ""
        return (
            f"the workers failed {failures} times in a row at step {step} without reaching another checkpoint, "
            f"train.max_failures is {self._max_failures}; the last error: {self._last_error}"
        )

    def failed(self, error: str) -> None:
        """Note what a rank ended with.

        Args:
            error: One line.
        """
        self._last_error = error

    def saved(self) -> None:
        """Note that there is a new checkpoint."""
        self._starts.clear()
