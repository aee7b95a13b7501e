"""Rest for Ray Data's scheduling loop, which turns without any while a dataset is as far ahead as it may be.

The loop waits for its tasks to have something ready. A task whose next block may not be taken yet, since the consumer
is behind, has: the wait ends at once, some 300 times a second, a third of a core for each dataset. The same
goes for a dataset whose tasks have all ended and whose blocks wait to be taken. Such a turn changes nothing. After one
this callback sleeps, longer from turn to turn, and not at all after a turn in which a block came or a task began: where
the consumer waits for data, nothing is later than before.
"""

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_SHORTEST, _LONGEST = 0.002, 0.03
"""Seconds. The longest is far below the time for which a rank's prefetched units last."""


class RestsWithoutProgress(ExecutionCallback):
    """Sleeps in the scheduling loop while nothing happens; see `DataContext.custom_execution_callback_classes`."""

    def __init__(self) -> None:
        self._seen: tuple[int, ...] = ()
        self._rest = _SHORTEST

    def on_execution_step(self, executor: Any) -> None:
        """Look whether the turn changed anything, and sleep if it did not.

        Args:
            executor: Ray Data's `StreamingExecutor`.
        """
        metrics = [operator.metrics for operator in executor._topology]
        seen = tuple(
            number for one in metrics for number in (one.num_task_outputs_generated, one.num_tasks_submitted)
        )
        if seen != self._seen:
            self._seen, self._rest = seen, _SHORTEST
            return
        time.sleep(self._rest)
        self._rest = min(2 * self._rest, _LONGEST)
