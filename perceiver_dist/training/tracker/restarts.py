"""Restart budget: how often the workers of a run are restarted before the run is given up.

A run of a week loses many workers, so only failures in a row count: a new checkpoint resets the count. An error of the
code recurs at the same step after every restart; its second occurrence ends the run.
"""

from perceiver_dist.training.tracker.failures import RankFailure


class FailureBudget:
    """Counter of the starts since the newest checkpoint and of the errors that ended the workers.

    Args:
        max_failures: Maximum failures in a row without a new checkpoint.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._starts = 0
        self._last_error = "a process was lost"
        self._all_starts = 0
        self._starts_of_error: dict[tuple[int, str, str], set[int]] = {}
        self._repeated = ""
        self._reported_start = -1

    def count(self, step: int) -> str:
        """Count a start. Each start creates the training dataset once.

        Args:
            step: The step from which the workers would resume.

        Returns:
            Why the workers must not be started, one line; "" if they may.
        """
        if self._repeated:
            return self._repeated
        self._all_starts += 1
        self._starts += 1
        failures = self._starts - 1
        if failures <= self._max_failures:
            return ""
        return (
            f"the workers failed {failures} times in a row at step {step} without reaching another checkpoint, "
            f"train.max_failures is {self._max_failures}; the last error: {self._last_error}"
        )

    def failed(self, failure: RankFailure) -> bool:
        """Record a failure. An error of the code at the same step of two starts ends the run.

        Args:
            failure: The failure of a rank.

        Returns:
            Whether to report it: it is the first failure since the newest start, and the workers will be restarted.
        """
        # The rank that caused it reports the reason itself.
        if failure.kind == "peer":
            return False
        start = self._all_starts
        first = start > self._reported_start
        self._reported_start = start
        self._last_error = failure.line
        if failure.kind == "code":
            # The message may contain addresses or times; type, step and place identify the error.
            error = (failure.state.step, failure.error.partition(":")[0], failure.place)
            starts = self._starts_of_error.setdefault(error, set())
            starts.add(start)
            if len(starts) > 1:
                self._repeated = f"{failure.line}, for the second time: it is the code, not the machine"
        return first and not self._repeated

    def hung(self, line: str) -> None:
        """Record that the ranks were ended because they hung.

        Args:
            line: What they did, one line.
        """
        self._last_error = line

    def saved(self) -> None:
        """Reset the count: there is a new checkpoint."""
        self._starts = 0
