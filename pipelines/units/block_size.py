"""Sizes of blocks and read tasks, from the bytes of a unit.

Two costs ask for large pieces: Ray Data's milliseconds for every block, and the gap between two tasks of a reader. Two
bounds ask for small ones: the memory of a rank, which holds a block for each of its lanes and each source, and that of
the readers, whose blocks wait for those of earlier tasks.
"""

from collections.abc import Iterable, Iterator, Mapping

from pipelines.units.block_order import UnitBlock

_BLOCK_BYTES = 2**26
"""64 MiB take a reader about half a second to make, a hundred times of what Ray spends on it."""
_OPEN_BYTES = 2**28
"""256 MiB: what a rank may hold in blocks of many lanes and sources."""
_BLOCK_UNITS = 64
"""Units that are tiny need no larger blocks: Ray's work is then a thirtieth of theirs."""
TASK_BYTES = 3 * 2**25
"""96 MiB take a reader about a second: of photographs 1.2, of recordings 3, of video clips 0.5. A task takes 20 ms to
start."""
_GROWTH = 8
"""A task takes at most an eighth of the units before it, so that the first ones are spread over all readers."""


def units_per_block(unit_bytes: int, open_blocks: int) -> int:
    """Return the largest number of units in a block, a power of two.

    Args:
        unit_bytes: Bytes of a unit of the source.
        open_blocks: Blocks that a rank may hold at a time.
    """
    units = min(_BLOCK_BYTES, _OPEN_BYTES // open_blocks) // unit_bytes
    return 2 ** (min(max(units, 1), _BLOCK_UNITS).bit_length() - 1)


def tasks_of(
    blocks: Iterable[UnitBlock], unit_bytes: Mapping[str, int], max_units: int
) -> Iterator[list[UnitBlock]]:
    """Yield the blocks of each read task, in order; at least one per task.

    Args:
        blocks: All blocks.
        unit_bytes: Bytes of a unit by source.
        max_units: Max units per task, `data.units_per_task`; a single block may have more.
    """
    task: list[UnitBlock] = []
    units = size = before = 0
    for block in blocks:
        more = len(block.units)
        too_many = units + more > min(max_units, max(before // _GROWTH, 1))
        if task and (too_many or size + more * unit_bytes.get(block.source, 0) > TASK_BYTES):
            yield task
            before += units
            task, units, size = [], 0, 0
        task.append(block)
        units += more
        size += more * unit_bytes.get(block.source, 0)
    if task:
        yield task
