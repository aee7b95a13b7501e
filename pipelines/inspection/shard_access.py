"""The shards that are looked at: found by a pattern, indexed as a run does, and their samples read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pipelines.demo.resolve import resolve_shards
from pipelines.permutation import Permutation, hash64
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.source import DEFAULT_DATA
from pipelines.storage.files import absolute_uri, expand_shards, join

SOURCE = "shards"
"""What the shards are called where a source has its name, in errors and records."""

_THREADS = 16
"""Requests at a time: remote storage answers each after some tens of milliseconds."""

Result = TypeVar("Result")


def find_shards(pattern: str, storage_path: str) -> list[str]:
    """Return the shards that a pattern names, without opening them.

    Args:
        pattern: As `train_shards` of a source: braces, globs, and "demo:NAME/PATTERN".
        storage_path: Path or URI of the folder of the runs, in which demo data is rendered.

    Returns:
        Absolute paths or URIs.

    Raises:
        UserError: A demo is unknown, braces are not closed, or a glob matches nothing.
    """
    return expand_shards(resolve_shards(pattern, absolute_uri(storage_path), SOURCE), SOURCE)


def index_folder(storage_path: str) -> str:
    """Return the folder that runs keep their indexes in.

    Args:
        storage_path: Path or URI of the folder of the runs.
    """
    return absolute_uri(join(storage_path, "index"))


def index_shards(
    shards: Sequence[str], folder: str, storage_seconds: float = DEFAULT_DATA.storage_seconds
) -> SourceIndex:
    """Index shards in this process, those known already at no cost.

    Args:
        shards: Paths or URIs.
        folder: Path or URI of the folder that index files are kept in.
        storage_seconds: How long remote storage that fails is asked.

    Raises:
        ShardError: A shard cannot be indexed; the first such is named.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return SourceIndex(list(pool.map(lambda uri: index_shard(uri, folder, storage_seconds), shards)))


def draw_samples(index: SourceIndex, count: int, seed: int) -> list[int]:
    """Draw samples without repetition.

    Args:
        index: The shards' index.
        count: How many; all if there are not more.
        seed: Another seed draws others.

    Returns:
        Sample numbers in the order in which they were drawn.
    """
    permutation = Permutation(index.samples, hash64(seed, "inspection"))
    return [permutation(position) for position in range(min(count, index.samples))]


def map_samples(
    look: Callable[[RawSample], Result],
    index: SourceIndex,
    samples: Sequence[int],
    wanted: frozenset[str],
    samples_at_once: int,
) -> list[Result]:
    """Read samples in threads, call a function with each, and forget their bytes.

    Args:
        look: Called in one of the threads.
        index: The shards' index.
        samples: Sample numbers.
        wanted: Names of the fields to read.
        samples_at_once: Samples that a thread holds; neighbours among them are read with one request.

    Returns:
        What the function returned, in the order of `samples`.

    Raises:
        ShardError: A shard is gone, has changed, or cannot be read.
    """
    pieces = [samples[start : start + samples_at_once] for start in range(0, len(samples), samples_at_once)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result for piece in pool.map(partial(_look_at, look, index, wanted), pieces) for result in piece
        ]


def _look_at(
    look: Callable[[RawSample], Result], index: SourceIndex, wanted: frozenset[str], samples: Sequence[int]
) -> list[Result]:
    return [look(sample) for sample in read_samples(index, samples, wanted)]
