"""Ordered Ray Dataset of units: one unit per block, from any unit number on, dealt to the ranks in turn.

Read tasks run in parallel on any node and may finish in any order, but each rank must get the units that are its share
of the plan. Four settings ensure that:

- one row per block: a unit is a block of exactly one row (`unit_block`);
- `target_max_block_size = 1` (byte): Ray never merges blocks;
- `preserve_order`: Ray passes blocks on in the order of the read tasks, and does not prefer local ones. Ray Train
  replaces a dataset's execution options, so `perceiver_dist/training/driver.py` sets it, too;
- `streaming_split(ranks, equal=True)`, called by Ray Train: each block goes to the rank with the fewest rows so far, on
  a tie to the first. As all blocks have one row, that deals them in turn.

So unit u goes to rank (u - first) mod ranks, where `first` is the first unit of the dataset. In training that is the
first unit of the step to start from, a multiple of the lanes (`pipelines/units/plan.py`). If the number of units is not
a multiple of the ranks, an equal split drops the rest at the end; callers add spare units to be dropped.

This is how Ray 2.60 behaves (ray/data/_internal/execution/operators/output_splitter.py), not what it promises. So every
unit carries its number, and the run stops if a rank gets another unit than
`perceiver_dist.training.zero.accumulation.units_of_rank` says (`perceiver_dist.data.batches.UnitStream.take`).
`tests/pipelines/units/test_unit_datasource.py` checks the order with the installed Ray.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata

from pipelines.decode.sandbox import sandboxed_on_retry
from pipelines.shards.source import DataConfig
from pipelines.units.unit_maker import Unit, UnitMaker


class UnitDatasource(Datasource):
    """Ray Datasource of the units `first` to `stop` - 1 of one source.

    Args:
        maker: Reference to the `UnitMaker`, so that the tasks of a node share one copy.
        first: Number of the first unit.
        stop: Number after that of the last unit.
        units_per_task: Max units per read task.
    """

    def __init__(self, maker: "ray.ObjectRef[UnitMaker]", first: int, stop: int, units_per_task: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Ray leaves it without types
        self._maker = maker
        self._ranges = [
            range(start, min(start + units_per_task, stop)) for start in range(first, stop, units_per_task)
        ]

    @property
    def tasks(self) -> int:
        """Number of read tasks."""
        return len(self._ranges)

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None (unknown): Ray uses the size only to choose the number of read tasks, which is given here."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:  # noqa: ARG002
        """Return the read tasks, in the order of their units.

        Args:
            parallelism: Number of tasks that Ray suggests; ignored.
            args: Other arguments of Ray's interface; ignored.
            kwargs: Other arguments of Ray's interface; ignored.
        """
        return [
            ReadTask(
                partial(_make_blocks, self._maker, numbers),
                BlockMetadata(num_rows=len(numbers), size_bytes=None, exec_stats=None, input_files=None),
            )
            for numbers in self._ranges
        ]


def _make_blocks(maker: "ray.ObjectRef[UnitMaker]", numbers: range) -> Iterator[pa.Table]:
    unit_maker = _fetch(maker)
    # A generator: each unit leaves the task as soon as it is made, so ranks need not wait for the whole task.
    with sandboxed_on_retry(unit_maker.decode) as safe:
        for number in numbers:
            yield unit_block(replace(unit_maker, decode=safe).make(number))


# A worker process runs tasks of several sources and datasets. Cached, the maker is unpickled once, not for every task.
@lru_cache(maxsize=8)
def _fetch(maker: "ray.ObjectRef[UnitMaker]") -> UnitMaker:
    return ray.get(maker)


def unit_block(unit: Unit) -> pa.Table:
    """Return a unit as a block of exactly one row: every array gets a leading axis of length 1.

    Args:
        unit: The arrays of a unit, as `UnitMaker.make` returns them.
    """
    # Strings become Arrow lists: Ray's tensor type is for numbers, and `quarantined` differs in length between units.
    texts = {"keys": pa.list_(pa.string()), "quarantined": pa.list_(pa.list_(pa.string()))}
    block = BlockAccessor.batch_to_arrow_block(
        {name: array[np.newaxis] for name, array in unit.items() if name not in texts}
    )
    for name, kind in texts.items():
        block = block.append_column(name, pa.array([unit[name].tolist()], kind))
    return block


def unit_dataset(maker: UnitMaker, first: int, stop: int, data: DataConfig) -> Dataset:
    """Return the units `first` to `stop` - 1 as a lazy, ordered Dataset of one-row blocks.

    Sets options of this process's `DataContext`, which the dataset copies.

    Args:
        maker: Makes the units.
        first: Number of the first unit.
        stop: Number after that of the last unit; above `first`.
        data: Number of units per task, and of tasks at a time.

    Returns:
        The dataset, for Ray Train or for `streaming_split`.
    """
    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    source = UnitDatasource(ray.put(maker), first, stop, data.units_per_task)
    return ray.data.read_datasource(
        source,
        override_num_blocks=source.tasks,
        concurrency=data.tasks,
        num_cpus=1,
    )
