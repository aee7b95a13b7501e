"""Writing shards: WebDataset tar files whose bytes depend on nothing but the samples."""

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from webdataset import TarWriter

from perceiver_dist.errors import InternalError
from pipelines.errors import ShardError

Sample = Mapping[str, bytes | int | str]
"""One sample: its key under `__key__`, and its fields by file extension; `cls` is an integer label."""


def write_shards(samples: Iterable[Sample], directory: Path, name: str, samples_per_shard: int) -> list[Path]:
    """Write samples to `<directory>/<name>-000000.tar` and on, in the order given.

    Args:
        samples: The samples.
        directory: Where the shards go; made if it is not there.
        name: What the shards' names begin with.
        samples_per_shard: Samples in every shard but the last.

    Returns:
        The shards, in order; none if there are no samples.

    Raises:
        InternalError: `samples_per_shard` is not positive.
        ShardError: A sample has no key or one that WebDataset would read differently.
    """
    if samples_per_shard < 1:
        raise InternalError(f"samples_per_shard is {samples_per_shard}, must be at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    remaining = iter(samples)
    shards: list[Path] = []
    while group := list(islice(remaining, samples_per_shard)):
        shards.append(directory / f"{name}-{len(shards):06d}.tar")
        write_shard(group, shards[-1])
    return shards


def write_shard(samples: Iterable[Sample], path: Path) -> None:
    """Write one shard: beside its place first, and moved there when complete.

    Args:
        samples: The samples.
        path: Where the shard goes; what is there is replaced.

    Raises:
        ShardError: A sample has no key or one that WebDataset would read differently.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file, TarWriter(file, user="", group="", mode=0o644, mtime=0) as tar:
            for number, sample in enumerate(samples):
                _check_key(sample, number, path)
                tar.write(dict(sample))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_key(sample: Sample, number: int, path: Path) -> None:
    # WebDataset takes what follows the first dot of a member's name for the field.
    key = sample.get("__key__")
    if not isinstance(key, str) or not key or "." in key.rpartition("/")[2]:
        raise ShardError(
            f"shard {path.name}: sample {number} has the key {key!r}, "
            "expected under __key__ a text that is not empty and has no dot"
        )
