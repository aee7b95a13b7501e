"""Ordered Ray Dataset of units: blocks of a few units each, in any given order, dealt to the ranks in turn.

Read tasks run in parallel on any node and may finish in any order, but each rank must get the units that are its share
of the plan. Four settings ensure that:

- one row per block: the units of a block are one row (`pipelines/units/block_format.py`);
- `target_max_block_size = 1` (byte): Ray never merges blocks;
- `preserve_order`: Ray passes blocks on in the order of the read tasks, and does not prefer local ones. Ray Train
  replaces a dataset's execution options, so `perceiver_dist/training/driver.py` sets it, too;
- `streaming_split(ranks, equal=True)`, called by Ray Train: each block goes to the rank with the fewest rows so far, on
  a tie to the first. As all blocks have one row, that deals them in turn.

So block b goes to rank b mod ranks. Which units it holds is the business of `pipelines/units/block_order.py`. If the
number of blocks is not a multiple of the ranks, an equal split drops the rest at the end; callers add spare blocks to
be dropped.

This is how Ray 2.60 behaves (ray/data/_internal/execution/operators/output_splitter.py), not what it promises. So every
unit carries its number, and the run stops if a rank gets another unit than
`perceiver_dist.training.zero.accumulation.units_of_rank` says (`perceiver_dist.data.batches.UnitStream.take`).
`tests/pipelines/units/test_unit_datasource.py` checks the order with the installed Ray.

Ray plans all read tasks before the first one runs, at 0.4 to 1 ms and 8 KiB each; the ImageNet recipe has tens of
thousands. So longer datasets are made in two stages: one task streams the blocks of each read task, and a task for each
makes them. That starts in seconds whatever the length, but costs a process, so short datasets are planned.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.decode.sandbox import sandboxed_on_retry
from pipelines.shards.source import DataConfig
from pipelines.units.block_format import BlockBuffer, StoredBlock
from pipelines.units.block_order import UnitBlock
from pipelines.units.block_size import tasks_of
from pipelines.units.block_statistics import ForgetBlockStatistics
from pipelines.units.scheduling_rest import RestWhenIdle
from pipelines.units.unit_maker import UnitMaker

_MAX_PLANNED_TASKS = 2000
"""Read tasks up to which Ray plans them all at the start: one to two seconds, about the start of one more process."""

Makers = Mapping[str, UnitMaker]
"""Makers of units by source."""


class UnitDatasource(Datasource):
    """Ray Datasource of units.

    Args:
        makers: Reference to the makers, so that the tasks of a node share one copy.
        tasks: The blocks of each read task, in order.
    """

    def __init__(self, makers: "ray.ObjectRef[Makers]", tasks: list[list[UnitBlock]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Ray leaves it without types
        self._makers = makers
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None (unknown): Ray uses the size only to choose the number of read tasks, which is given here."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:  # noqa: ARG002
        """Return the read tasks, in the order of their blocks.

        Args:
            parallelism: Number of tasks that Ray suggests; ignored.
            args: Other arguments of Ray's interface; ignored.
            kwargs: Other arguments of Ray's interface; ignored.
        """
        return [
            ReadTask(
                partial(_make_blocks, self._makers, blocks),
                BlockMetadata(num_rows=len(blocks), size_bytes=None, exec_stats=None, input_files=None),
            )
            for blocks in self._tasks
        ]


class TaskDatasource(Datasource):
    """Ray Datasource of what the read tasks have to make: a row per task, streamed by a single task.

    Args:
        tasks: The blocks of each read task, in order.
    """

    def __init__(self, tasks: Iterable[list[UnitBlock]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Ray leaves it without types
        self._stream = partial(_stream_tasks, tasks)

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
        return [ReadTask(self._stream, unknown)]


class _Tasks:
    """The read tasks of blocks; can be iterated over repeatedly, and pickled however many there are."""

    def __init__(self, blocks: Iterable[UnitBlock], unit_bytes: dict[str, int], max_units: int) -> None:
        self._arguments = (blocks, unit_bytes, max_units)

    def __iter__(self) -> Iterator[list[UnitBlock]]:
        return tasks_of(*self._arguments)


def _stream_tasks(tasks: Iterable[list[UnitBlock]]) -> Iterator[pa.Table]:
    for blocks in tasks:
        yield pa.table({"blocks": pa.array([pickle.dumps(blocks)], pa.binary())})


def _make_blocks_of_rows(makers: "ray.ObjectRef[Makers]", rows: pa.Table) -> Iterator[pa.Table]:
    for row in rows["blocks"].to_pylist():
        yield from _make_blocks(makers, pickle.loads(row))  # noqa: S301 # from our own process


def _make_blocks(makers: "ray.ObjectRef[Makers]", blocks: list[UnitBlock]) -> Iterator[pa.Table]:
    all_makers = _fetch(makers)
    with ExitStack() as stack:
        safe = {
            name: replace(maker, decode=stack.enter_context(sandboxed_on_retry(maker.decode)))
            for name, maker in all_makers.items()
            if any(block.source == name for block in blocks)
        }
        # A generator: each block leaves the task as soon as it is made, so ranks need not wait for the whole task.
        for block in blocks:
            yield _make_block(safe[block.source] if block.units else None, block)


def _make_block(maker: UnitMaker | None, block: UnitBlock) -> pa.Table:
    buffer = BlockBuffer(maker.arrays if maker else {}, len(block.units))
    keys, quarantined = [], []
    if maker:
        for row, number in enumerate(block.units):
            unit = maker.make(number, buffer.arrays(row))
            keys.append(unit["keys"].tolist())
            quarantined.append(unit["quarantined"].tolist())
    return buffer.table(block.source, block.units, {"keys": keys, "quarantined": quarantined})


# A worker process runs tasks of several datasets. Cached, the makers are unpickled once, not for every task.
@lru_cache(maxsize=8)
def _fetch(makers: "ray.ObjectRef[Makers]") -> Makers:
    return ray.get(makers)


def stored_blocks(shard: DataIterator | Dataset, prefetch: int) -> Iterator[StoredBlock]:
    """Return the blocks of a dataset, or of a rank's part of it, as they arrive.

    Args:
        shard: The dataset or the part.
        prefetch: Number of blocks to prefetch.
    """
    tables = shard.iter_batches(
        batch_size=None,  # type: ignore[arg-type] # Ray's type leaves out None, a whole block, which it documents
        batch_format="pyarrow",
        prefetch_batches=prefetch,
    )
    return map(StoredBlock, iter(tables))


def unit_dataset(makers: Makers, blocks: Iterable[UnitBlock], data: DataConfig) -> Dataset:
    """Return units as a lazy, ordered Dataset of one-row blocks.

    Sets options of this process's `DataContext`, which the dataset copies.

    Args:
        makers: Maker of the units of each source.
        blocks: What each block holds, in order; not empty. It is iterated over more than once, and pickled.
        data: Number of units per task, and of tasks at a time.

    Returns:
        The dataset, for Ray Train or for `streaming_split`.
    """
    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [ForgetBlockStatistics, RestWhenIdle]
    reference = ray.put(makers)
    tasks = _Tasks(blocks, {name: maker.unit_bytes for name, maker in makers.items()}, data.units_per_task)
    # None leaves the number of tasks to Ray Data, which fills the CPUs that it gets while it has room for their output.
    concurrency = None if data.tasks == "auto" else data.tasks
    planned = list(islice(tasks, _MAX_PLANNED_TASKS + 1))
    if len(planned) <= _MAX_PLANNED_TASKS:
        source = UnitDatasource(reference, planned)
        return ray.data.read_datasource(
            source, override_num_blocks=len(planned), concurrency=concurrency, num_cpus=1
        )
    rows = ray.data.read_datasource(TaskDatasource(tasks), override_num_blocks=1, num_cpus=0)
    return rows.map_batches(
        partial(_make_blocks_of_rows, reference),
        batch_size=1,
        batch_format="pyarrow",
        concurrency=concurrency,
        num_cpus=1,
        # Ray never fuses an operator that has such a function: not with the rows, which would make all units in one
        # task, nor with the actors of `perceiver_dist.inference.scoring`, which a crashing decoder would end.
        ray_remote_args_fn=dict,
    )
