"""Access to the shards under inspection: find them by a pattern, index them as a run does, read their samples."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pipelines.demo.resolve import resolve_shards
from pipelines.permutation import Permutation, hash64
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.source import DEFAULT_DATA
from pipelines.storage.files import absolute_uri, join
from pipelines.storage.shard_list import expand_shards

SOURCE = "shards"
"""Stands for the name of the source in errors and records."""

_THREADS = 16
"""Concurrent requests: remote storage answers each after tens of milliseconds, so more threads than cores help."""

Result = TypeVar("Result")


def find_shards(pattern: str, storage_path: str) -> list[str]:
    """Return the shards that match a pattern, without opening them.

    Args:
        pattern: As `train_shards` of a source: braces, globs, and "demo:NAME/PATTERN".
        storage_path: Path or URI of the folder of the runs, where demo data is rendered.

    Returns:
        Absolute paths or URIs.

    Raises:
        UserError: A demo is unknown, a brace is not closed, or a glob matches nothing.
    """
    return expand_shards(resolve_shards(pattern, absolute_uri(storage_path), SOURCE), SOURCE)


def index_folder(storage_path: str) -> str:
    """Return the folder with the shard indexes of the runs.

    Args:
        storage_path: Path or URI of the folder of the runs.
    """
    return absolute_uri(join(storage_path, "index"))


def index_shards(
    shards: Sequence[str], folder: str, storage_seconds: float = DEFAULT_DATA.storage_seconds
) -> SourceIndex:
    """Index shards in this process. Shards that are indexed already cost nothing.

    Args:
        shards: Paths or URIs.
        folder: Path or URI of the index folder.
        storage_seconds: Seconds for which failing remote storage is retried.

    Raises:
        ShardError: A shard cannot be indexed; the message names the first one.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return SourceIndex(list(pool.map(lambda uri: index_shard(uri, folder, storage_seconds), shards)))


def draw_samples(index: SourceIndex, count: int, seed: int) -> list[int]:
    """Draw samples without repetition.

    Args:
        index: The shards' index.
        count: Number of samples; all if there are fewer.
        seed: Seed of the draw.

    Returns:
        Sample numbers, in the order drawn.
    """
    permutation = Permutation(index.samples, hash64(seed, "inspection"))
    return [permutation(position) for position in range(min(count, index.samples))]


def map_samples(
    function: Callable[[RawSample], Result],
    index: SourceIndex,
    samples: Sequence[int],
    wanted: frozenset[str],
    samples_at_once: int,
) -> list[Result]:
    """Read samples in threads and call a function with each; no more than the samples in work are in memory.

    Args:
        function: The function, called in one of the threads.
        index: The shards' index.
        samples: Sample numbers.
        wanted: Fields to read.
        samples_at_once: Samples that a thread holds at a time; neighbors among them are read with one request.

    Returns:
        The results of the function, in the order of `samples`.

    Raises:
        ShardError: A shard was removed or changed, or cannot be read.
    """
    pieces = [samples[start : start + samples_at_once] for start in range(0, len(samples), samples_at_once)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result for piece in pool.map(partial(_apply, function, index, wanted), pieces) for result in piece
        ]


def _apply(
    function: Callable[[RawSample], Result],
    index: SourceIndex,
    wanted: frozenset[str],
    samples: Sequence[int],
) -> list[Result]:
    return [function(sample) for sample in read_samples(index, samples, wanted)]
