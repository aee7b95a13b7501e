"""Bound on the memory that Ray Data's statistics of blocks take, for runs of days."""

from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_MAX_KEPT = 1000
"""About a megabyte, and as much as anybody looks at of a dataset's `stats()`."""


class ForgetBlockStatistics(ExecutionCallback):
    """Callback of Ray Data's executor that forgets the statistics of blocks that have been handed on.

    Ray Data 2.60 keeps a kilobyte for every block until the end of a dataset, for `Dataset.stats`, which this project
    never asks for: a gigabyte per million blocks in the actor that runs the training's dataset.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Forget them.

        Args:
            executor: Ray Data's executor, which calls this many times a second.
        """
        for operator in executor._topology:
            statistics = getattr(operator, "_output_blocks_stats", None)
            if statistics is not None and len(statistics) > _MAX_KEPT:
                statistics.clear()
