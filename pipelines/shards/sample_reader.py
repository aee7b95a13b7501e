"""Reading samples: byte ranges of shards, located by the index."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shards.shard_index import ShardSummary, SourceIndex
from pipelines.shards.source import DEFAULT_DATA, DataConfig
from pipelines.storage.files import open_storage
from pipelines.storage.retry import with_retries
from pipelines.storage.shard_file import ShardFile

_LARGEST_GAP = 4096


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in its shard.

    Attributes:
        shard: Path or URI of the tar file.
        key: The sample's key within the shard.
        fields: Bytes by field name ("jpg", "cls", ...), of the fields that were asked for.
        problem: Why the sample cannot be used and was not read; "" if nothing is known against it.
    """

    shard: str
    key: str
    fields: dict[str, bytes]
    problem: str = ""

    @property
    def name(self) -> str:
        """Shard and key, for messages."""
        return f"sample '{self.key}' of shard {self.shard}"


def read_samples(
    index: SourceIndex, samples: Sequence[int], wanted: frozenset[str], data: DataConfig = DEFAULT_DATA
) -> list[RawSample]:
    """Read samples, neighbours in a shard with one request.

    Args:
        index: The source's index.
        samples: Sample numbers, in any order.
        wanted: Names of the fields to read; others are left in the shard.
        data: How large a field may be, and how long storage is asked.

    Returns:
        The samples, in the order of `samples`.

    Raises:
        ShardError: A shard is gone, cannot be read, or its size is not the one it was indexed with.
    """
    read: dict[int, RawSample] = {}
    ordered = sorted(set(samples))
    start = 0
    while start < len(ordered):
        number, row = index.locate(ordered[start])
        shard = index.shards[number]
        available = min(len(ordered) - start, shard.samples - row)
        count = 1
        while count < available and ordered[start + count] == ordered[start] + count:
            count += 1
        neighbours = _read_rows(shard, row, count, wanted, data)
        read.update(zip(ordered[start : start + count], neighbours, strict=True))
        start += count
    return [read[sample] for sample in samples]


def _read_rows(
    shard: ShardSummary, row: int, count: int, wanted: frozenset[str], data: DataConfig
) -> list[RawSample]:
    entries = [
        _Entry(
            key=entry["key"],
            problem=entry["problem"],
            spans={
                field: (offset, length)
                for field, offset, length in zip(
                    entry["fields"], entry["offsets"], entry["lengths"], strict=True
                )
                if field in wanted
            },
        )
        for entry in index_table(shard.index, data.storage_seconds).slice(row, count).to_pylist()
    ]
    entries = [entry.checked(data.limits.field_bytes) for entry in entries]
    content = _read_spans(
        shard, sorted({span for entry in entries for span in entry.spans.values()}), data.storage_seconds
    )
    return [
        RawSample(
            shard.uri, entry.key, {field: content[span] for field, span in entry.spans.items()}, entry.problem
        )
        for entry in entries
    ]


@dataclass(frozen=True)
class _Entry:
    """What the index says of a sample: key, known problem, and (offset, length) of the wanted fields."""

    key: str
    problem: str
    spans: dict[str, tuple[int, int]]

    def checked(self, most_bytes: int) -> "_Entry":
        """Return the entry without anything to read if the sample has a problem or is too large."""
        too_large = [(field, length) for field, (_, length) in self.spans.items() if length > most_bytes]
        problem = self.problem
        if too_large and not problem:
            field, length = too_large[0]
            problem = f"field '{field}' has {length} bytes, more than data.limits.field_bytes {most_bytes}"
        return _Entry(self.key, problem, {}) if problem else self


def _read_spans(
    shard: ShardSummary, spans: list[tuple[int, int]], storage_seconds: float
) -> dict[tuple[int, int], bytes]:
    """Read (offset, length) spans, those close to each other with one request."""
    data: dict[tuple[int, int], bytes] = {}
    start = 0
    while start < len(spans):
        stop, end = start + 1, sum(spans[start])
        while stop < len(spans) and spans[stop][0] - end <= _LARGEST_GAP:
            end = max(end, sum(spans[stop]))
            stop += 1
        base = spans[start][0]
        block = _open_shard(shard.uri, shard.bytes, storage_seconds).read_at(end - base, base)
        for offset, length in spans[start:stop]:
            data[offset, length] = block[offset - base : offset - base + length]
        start = stop
    return data


@lru_cache(maxsize=128)
def _open_shard(uri: str, size: int, storage_seconds: float) -> ShardFile:
    return ShardFile(uri, size, storage_seconds)


@lru_cache(maxsize=32)
def index_table(uri: str, storage_seconds: float) -> pa.Table:
    """Return the index of a shard: a row per sample with its key, problem, and each field's name, offset and length.

    Args:
        uri: Path or URI of the index file.
        storage_seconds: How long remote storage that fails is asked.

    Raises:
        ShardError: Storage fails.
    """

    def read() -> pa.Table:
        filesystem, path = open_storage(uri)
        return pq.read_table(path, filesystem=filesystem)

    return with_retries(read, f"index {uri}", uri, storage_seconds)
