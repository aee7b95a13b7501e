"""Units as a Ray Dataset: ordered, one unit per block, made anew from any unit number.

Why it is built so. `streaming_split(equal=True)` deals whole blocks to the ranks in turn as long as all blocks
have the same number of rows. With one row (one unit) per block, blocks kept apart (`target_max_block_size=1`)
and in order (`preserve_order`), unit u therefore goes to rank u mod world. This is how Ray behaves rather than
what it promises, so every unit carries its number and the training loop checks it.
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
    """Units `first` .. `stop` - 1 of a source, several to a read task.

    Args:
        maker: Reference to the `UnitMaker`, so that tasks share one copy per node.
        first: Number of the first unit.
        stop: One past the last unit's number.
        units_per_task: Units that one task makes, in order.
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
        """Return None: unknown to Ray, which needs it only to choose a number of blocks that is given here."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:  # noqa: ARG002
        """Return one read task per range of units.

        Args:
            parallelism: Ray's wish, not followed.
            args: What else Ray passes, not used.
            kwargs: What else Ray passes, not used.
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
    with sandboxed_on_retry(unit_maker.decode) as safe:
        for number in numbers:
            yield unit_block(replace(unit_maker, decode=safe).make(number))


@lru_cache(maxsize=8)
def _fetch(maker: "ray.ObjectRef[UnitMaker]") -> UnitMaker:
    return ray.get(maker)


def unit_block(unit: Unit) -> pa.Table:
    """Return a unit as a block of exactly one row: every array gets a leading axis of length 1.

    Args:
        unit: As `UnitMaker.make` returns it.
    """
    texts = {"keys": pa.list_(pa.string()), "quarantined": pa.list_(pa.list_(pa.string()))}
    block = BlockAccessor.batch_to_arrow_block(
        {name: array[np.newaxis] for name, array in unit.items() if name not in texts}
    )
    for name, kind in texts.items():
        block = block.append_column(name, pa.array([unit[name].tolist()], kind))
    return block


def unit_dataset(maker: UnitMaker, first: int, stop: int, data: DataConfig) -> Dataset:
    """Return units `first` .. `stop` - 1 as a lazy Dataset of one-row blocks.

    Args:
        maker: What makes the units.
        first: Number of the first unit.
        stop: One past the last unit's number; above `first`.
        data: How many units a task makes, and how many tasks run at a time.

    Returns:
        The dataset, to be handed to Ray Train.
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
