"""Rest for Ray Data's scheduling loop while a dataset is as far ahead as it may be.

The loop waits for outputs of read tasks with `ray.wait`. An output that may not be taken yet, since the ranks have not
consumed those before it, is ready: the wait returns at once, and the loop goes round 200 to 300 times a second without
anything to do, which takes up to half of a core that ranks or readers could use (Ray 2.60).
"""

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_REST_SECONDS = 0.02
"""A tenth of the CPU time, and short beside the seconds of work that lie ready whenever the loop has nothing to do."""
_QUICK_SECONDS = 0.01
"""A round that took longer has waited for something by itself, or had something to do."""


class RestWhenIdle(ExecutionCallback):
    """Callback of Ray Data's executor that sleeps after a quick round of its loop that changed nothing."""

    def __init__(self) -> None:
        """Start before the first round."""
        self._progress: tuple[int, ...] = ()
        self._ended = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Sleep if nothing has happened.

        Args:
            executor: Ray Data's executor, which calls this after every round.
        """
        progress = tuple(
            count
            for operator in executor._topology
            for count in (
                operator.metrics.num_task_outputs_generated,
                operator.metrics.num_outputs_taken,
                operator.metrics.num_tasks_submitted,
                operator.metrics.num_tasks_finished,
            )
        )
        if progress == self._progress and time.monotonic() - self._ended < _QUICK_SECONDS:
            time.sleep(_REST_SECONDS)
        self._progress = progress
        self._ended = time.monotonic()
