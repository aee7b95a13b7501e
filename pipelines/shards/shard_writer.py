"""Writer of WebDataset tar shards. It is deterministic: the bytes depend on the samples alone."""

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from webdataset import TarWriter

from perceiver_dist.errors import UserError
from pipelines.errors import ShardError

Sample = Mapping[str, bytes | int | str]
"""One sample: its key as `__key__`, and its fields by file extension; `cls` is an integer label."""


def write_shards(samples: Iterable[Sample], directory: Path, name: str, samples_per_shard: int) -> list[Path]:
    """Write samples to `<directory>/<name>-000000.tar`, `-000001.tar` and so on, in the given order.

    Args:
        samples: The samples.
        directory: Folder of the shards; created if missing.
        name: Prefix of the shards' file names.
        samples_per_shard: Samples in every shard but the last, which may have fewer.

    Returns:
        Paths of the shards, in order; none if there are no samples.

    Raises:
        UserError: `samples_per_shard` is not positive.
        ShardError: A sample has no key, or one that WebDataset would split differently.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}, must be at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    remaining = iter(samples)
    shards: list[Path] = []
    while group := list(islice(remaining, samples_per_shard)):
        shards.append(directory / f"{name}-{len(shards):06d}.tar")
        write_shard(group, shards[-1])
    return shards


def write_shard(samples: Iterable[Sample], path: Path) -> None:
    """Write one shard atomically.

    Args:
        samples: The samples.
        path: Path of the shard; an existing file is replaced.

    Raises:
        ShardError: A sample has no key, or one that WebDataset would split differently.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # No user, no time: the same samples give the same bytes on every machine.
        with partial.open("wb") as file, TarWriter(file, user="", group="", mode=0o644, mtime=0) as tar:
            for number, sample in enumerate(samples):
                _check_key(sample, number, path)
                tar.write(dict(sample))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_key(sample: Sample, number: int, path: Path) -> None:
    # In WebDataset the key ends at the first dot of the file name and the field follows it.
    key = sample.get("__key__")
    if not isinstance(key, str) or not key or "." in key.rpartition("/")[2]:
        raise ShardError(
            f"shard {path.name}: sample {number} has the key {key!r}, "
            "expected as __key__ a non-empty string without a dot after its last slash"
        )
