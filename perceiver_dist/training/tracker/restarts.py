"""How often the workers of a run are started, and when that is enough.

A run of a week loses many workers, and a start counts as a failure until a new checkpoint is written. An error of the
code ends the workers at the same step each time; of that, the second time is enough.
"""

from collections import Counter

from perceiver_dist.training.tracker.failures import RankFailure


class FailureBudget:
    """Counts the starts since the newest checkpoint, and knows what ended the workers before.

    Args:
        max_failures: Starts in a row that may come to nothing before the run is given up.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._starts: Counter[str] = Counter()
        self._last_error = "a process was lost"
        self._all_starts: Counter[str] = Counter()
        self._starts_of_error: dict[tuple[int, str, str], set[int]] = {}
        self._repeated = ""
        self._told = -1

    def count(self, source: str, step: int) -> str:
        """Count a start; every source's dataset is made anew at each.

        Args:
            source: The source whose dataset is made.
            step: The step that the start goes on from.

        Returns:
            Why there should be no start, one line; "" if there should.
        """
        if self._repeated:
            return self._repeated
        self._all_starts[source] += 1
        self._starts[source] += 1
        failures = self._starts[source] - 1
        if failures <= self._max_failures:
            return ""
        return (
            f"the workers failed {failures} times in a row at step {step} without reaching another checkpoint, "
            f"train.max_failures is {self._max_failures}; the last error: {self._last_error}"
        )

    def failed(self, failure: RankFailure) -> bool:
        """Note what a rank ended with; an error of the code at the same step of two starts is enough.

        Args:
            failure: What ended it.

        Returns:
            Whether nothing that failed since the newest start has been told yet, and this is worth telling.
        """
        if failure.kind == "peer":
            return False
        start = max(self._all_starts.values(), default=0)
        first = start > self._told
        self._told = start
        self._last_error = failure.line
        if failure.kind == "code":
            error = (failure.state.step, failure.error.partition(":")[0], failure.place)
            starts = self._starts_of_error.setdefault(error, set())
            starts.add(start)
            if len(starts) > 1:
                self._repeated = f"{failure.line}, for the second time: it is the code, not the machine"
        return first and not self._repeated

    def saved(self) -> None:
        """Note that there is a new checkpoint."""
        self._starts.clear()
