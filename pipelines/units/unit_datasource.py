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

Ray plans all read tasks before the first one runs, at 0.4 to 1 ms and 8 KiB each; the ImageNet recipe has 600,000. So
longer datasets are made in two stages: one task streams the ranges of units, and a task per range makes the units. That
starts in seconds whatever the length, but costs a process, so short datasets are planned.
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

_MAX_PLANNED_TASKS = 2000
"""Read tasks up to which Ray plans them all at the start: one to two seconds, about the start of one more process."""


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
        self._stop = stop
        self._starts = range(first, stop, units_per_task)

    @property
    def tasks(self) -> int:
        """Number of read tasks."""
        return len(self._starts)

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
        tasks = []
        for start in self._starts:
            numbers = range(start, min(start + self._starts.step, self._stop))
            metadata = BlockMetadata(
                num_rows=len(numbers), size_bytes=None, exec_stats=None, input_files=None
            )
            tasks.append(ReadTask(partial(_make_blocks, self._maker, numbers), metadata))
        return tasks


class UnitRangeDatasource(Datasource):
    """Ray Datasource of ranges of units: rows of `start` and `stop`, streamed by a single task.

    Args:
        first: Number of the first unit.
        stop: Number after that of the last unit.
        units_per_task: Max units per range.
    """

    def __init__(self, first: int, stop: int, units_per_task: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Ray leaves it without types
        self._ranges = partial(_stream_ranges, first, stop, units_per_task)

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None (unknown): there is one task, whatever the size."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:  # noqa: ARG002
        """Return the only read task.

        Args:
            parallelism: Number of tasks that Ray suggests; ignored.
            args: Other arguments of Ray's interface; ignored.
            kwargs: Other arguments of Ray's interface; ignored.
        """
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(self._ranges, unknown)]


def _stream_ranges(first: int, stop: int, units_per_task: int) -> Iterator[pa.Table]:
    for start in range(first, stop, units_per_task):
        yield pa.table({"start": [start], "stop": [min(start + units_per_task, stop)]})


def _make_blocks_of_ranges(maker: "ray.ObjectRef[UnitMaker]", ranges: pa.Table) -> Iterator[pa.Table]:
    for row in ranges.to_pylist():
        yield from _make_blocks(maker, range(row["start"], row["stop"]))


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
    reference = ray.put(maker)
    source = UnitDatasource(reference, first, stop, data.units_per_task)
    if source.tasks <= _MAX_PLANNED_TASKS:
        return ray.data.read_datasource(
            source, override_num_blocks=source.tasks, concurrency=data.tasks, num_cpus=1
        )
    ranges = ray.data.read_datasource(
        UnitRangeDatasource(first, stop, data.units_per_task), override_num_blocks=1, num_cpus=0
    )
    return ranges.map_batches(
        partial(_make_blocks_of_ranges, reference),
        batch_size=1,
        batch_format="pyarrow",
        concurrency=data.tasks,
        num_cpus=1,
        # Ray never fuses an operator that has such a function: not with the ranges, which would make all units in one
        # task, nor with the actors of `perceiver_dist.inference.scoring`, which a crashing decoder would end.
        ray_remote_args_fn=dict,
    )
