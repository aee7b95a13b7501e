"""Class of every sample of a source, from the index of its shards, without reading the samples.

The index has length and CRC-32 of each field. Samples of one class have the same label text, or one of a few (with a
newline or without), so only one sample of each length and CRC is read, and none for the plain texts, which are
computed. That two texts agree in both by accident is impossible up to four bytes, and has a chance of one in four
billion beyond. A label in a json field, which other entries make different for every sample, cannot be told apart so.
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.decode.sample import label_classes
from pipelines.errors import SampleError, ShardError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import ShardSummary, SourceIndex, index_table
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.storage.retry import with_retries

_AT_ONCE = 16
"""Indexes that are read at the same time, which hides the latency of remote storage."""
_NO_LABEL = np.uint64(2**64 - 1)
"""Stands for a sample without the field; no field is so long."""
_MORE_TEXTS = 100
"""Texts beyond one per class and plain form that are read. Real labels have a few forms; more are no class numbers."""


def class_numbers(index: SourceIndex, source: SourceConfig, data: DataConfig) -> np.ndarray:
    """Return the class of every sample of a softmax source.

    Args:
        index: Its shards.
        source: The source.
        data: Size limit of a field and deadline of storage requests.

    Returns:
        (samples,) int64; -1 where a sample has no valid label.

    Raises:
        ShardError: Storage fails, or the label field has so many contents that it is not a class number alone.
    """
    read = partial(_contents, field=source.label, storage_seconds=data.storage_seconds)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        contents = np.concatenate(list(threads.map(read, index.shards)))
    found, first, which = np.unique(contents, return_index=True, return_inverse=True)
    known = _plain_labels(source.num_classes) | {int(_NO_LABEL): -1}
    others = [number for number, content in enumerate(found) if int(content) not in known]
    if len(others) > _MORE_TEXTS:
        raise ShardError(
            f"source '{source.name}': balance needs a label that is a class number alone, but '{source.label}' has "
            f"{len(found):,} different contents for {source.num_classes} classes; set balance to 0"
        )
    classes = _read_classes(index, source, data, [int(first[number]) for number in others])
    known |= {int(found[number]): label for number, label in zip(others, classes, strict=True)}
    return np.array([known[int(content)] for content in found], np.int64)[which]


def _contents(shard: ShardSummary, field: str, storage_seconds: float) -> np.ndarray:
    """Return length and CRC-32 of a field of each sample of a shard as one number, (samples,) uint64.

    Raises:
        ShardError: Storage fails.
    """
    table: pa.Table = with_retries(
        lambda: index_table(shard), f"index {shard.index}", shard.index, storage_seconds
    ).combine_chunks()
    names = table["fields"].combine_chunks()
    rows = pc.list_parent_indices(names).to_numpy()
    is_label = pc.equal(pc.list_flatten(names), field).to_numpy(zero_copy_only=False)
    lengths, checksums = (
        pc.list_flatten(table[column].combine_chunks()).to_numpy()[is_label].astype(np.uint64)
        for column in ("lengths", "checksums")
    )
    contents = np.full(table.num_rows, _NO_LABEL)
    contents[rows[is_label]] = _content(lengths, checksums)
    return contents


def _content(length: np.ndarray, checksum: np.ndarray) -> np.ndarray:
    return (length << np.uint64(32)) | checksum


def _plain_labels(classes: int) -> dict[int, int]:
    """Return the class by the content of its number as text, with a newline and without."""
    return {
        len(text) << 32 | zlib.crc32(text): label
        for label in range(classes)
        for text in (f"{label}".encode(), f"{label}\n".encode())
    }


def _read_classes(
    index: SourceIndex, source: SourceConfig, data: DataConfig, samples: Sequence[int]
) -> list[int]:
    """Return the classes of some samples, -1 for one whose label is not valid.

    Raises:
        ShardError: Storage fails.
    """
    classes = []
    for sample in read_samples(index, samples, frozenset({source.label}), data):
        try:
            classes.append(label_classes(sample, source.label, "softmax", source.num_classes)[0])
        except SampleError:
            classes.append(-1)
    return classes
