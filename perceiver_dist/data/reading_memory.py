"""Sizes of the blocks of a run, and the memory that reading takes, computed from its configuration.

Three places hold decoded units: the readers (a block that is being made, and two that Ray has yet to fetch), the object
store (blocks that wait for their turn, up to a limit at which Ray Data rests its readers), and the ranks (prefetched
blocks, and those of which units are left; both are views of the object store).
"""

from perceiver_dist.config.run_config import RunConfig
from pipelines.shards.source import SourceConfig
from pipelines.units.block_size import TASK_BYTES, units_per_block
from pipelines.units.unit_maker import unit_bytes

_TASKS_IN_STORE = 4
"""Tasks per reader whose blocks may wait in the object store: one that is being made, one that waits for a slower task
before it, and as much again, since Ray Data sets half of its limit aside for blocks that are on their way out."""
_MIN_STORE_BYTES = 2**30
"""1 GiB: a machine with one or two readers has it, and a unit of the largest clips is a tenth of it."""
_BLOCKS_PER_READER = 3
"""Ray's generator of blocks stops when two have not been fetched; a third is being made."""


def block_units(config: RunConfig, source: SourceConfig, sources: int) -> int:
    """Return the largest number of units in a block of a source.

    Args:
        config: The resolved configuration.
        source: The source.
        sources: Number of sources in the dataset, of each of which a rank holds blocks.
    """
    train = config.train
    lanes = -(-train.lanes // train.min_workers)
    # A rank holds a block for each lane of each source, and prefetches as many.
    return units_per_block(_unit_bytes(config, source), open_blocks=2 * sources * lanes)


def prefetched_blocks(config: RunConfig, ranks: int) -> int:
    """Return how many blocks each rank prefetches: at least one for each of its lanes, since it needs them at once.

    Args:
        config: The resolved configuration.
        ranks: Number of ranks.
    """
    smallest = min(block_units(config, source, len(config.sources)) for source in config.sources)
    return max(-(-config.train.lanes // ranks), -(-config.data.prefetch_units // smallest))


def object_store_limit(config: RunConfig, readers: int) -> int:
    """Return the bytes of blocks in the object stores of all nodes at which the readers rest.

    Args:
        config: The resolved configuration.
        readers: Number of readers.
    """
    largest = max(_block_bytes(config))
    return max(_MIN_STORE_BYTES, _TASKS_IN_STORE * readers * max(TASK_BYTES, largest))


def reading_memory(config: RunConfig) -> dict[str, int]:
    """Return the bytes that reading takes at most.

    Args:
        config: The resolved configuration.

    Returns:
        "rank": blocks that each rank holds and prefetches, with the fewest workers that the configuration allows;
        "reader": process memory of each reader for blocks; "object_store": blocks that wait, per reader.
    """
    blocks = _block_bytes(config)
    ranks = config.train.min_workers
    lanes = -(-config.train.lanes // ranks)
    return {
        "rank": lanes * sum(blocks) + prefetched_blocks(config, ranks) * max(blocks),
        "reader": _BLOCKS_PER_READER * max(blocks),
        "object_store": _TASKS_IN_STORE * max(TASK_BYTES, *blocks),
    }


def _unit_bytes(config: RunConfig, source: SourceConfig) -> int:
    return unit_bytes(source, config.inputs(source), config.train.micro_batch)


def _block_bytes(config: RunConfig) -> list[int]:
    return [
        block_units(config, source, len(config.sources)) * _unit_bytes(config, source)
        for source in config.sources
    ]
