"""Reading samples: byte ranges of shards, located by the index."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ShardError
from pipelines.index import ShardSummary, SourceIndex
from pipelines.storage import open_storage

_LARGEST_GAP = 4096


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in its shard.

    Attributes:
        shard: Path or URI of the tar file.
        key: The sample's key within the shard.
        fields: Bytes by field name ("jpg", "cls", ...), of the fields that were asked for.
    """

    shard: str
    key: str
    fields: dict[str, bytes]

    @property
    def name(self) -> str:
        """Shard and key, for messages."""
        return f"sample '{self.key}' of shard {self.shard}"


def read_samples(index: SourceIndex, samples: Sequence[int], wanted: frozenset[str]) -> list[RawSample]:
    """Read samples, neighbours in a shard with one request.

    Args:
        index: The source's index.
        samples: Sample numbers, in any order.
        wanted: Names of the fields to read; others are left in the shard.

    Returns:
        The samples, in the order of `samples`.

    Raises:
        ShardError: A shard is gone, or its size is not the one it was indexed with.
    """
    read: dict[int, RawSample] = {}
    ordered = sorted(set(samples))
    start = 0
    while start < len(ordered):
        shard, row = index.locate(ordered[start])
        available = min(len(ordered) - start, index.shards[shard].samples - row)
        count = 1
        while count < available and ordered[start + count] == ordered[start] + count:
            count += 1
        neighbours = _read_rows(index.shards[shard], row, count, wanted)
        read.update(zip(ordered[start : start + count], neighbours, strict=True))
        start += count
    return [read[sample] for sample in samples]


def _read_rows(shard: ShardSummary, row: int, count: int, wanted: frozenset[str]) -> list[RawSample]:
    rows = _index_table(shard.index).slice(row, count).to_pylist()
    spans = {
        (offset, length)
        for entry in rows
        for field, offset, length in zip(entry["fields"], entry["offsets"], entry["lengths"], strict=True)
        if field in wanted
    }
    data = _read_spans(shard, sorted(spans))
    return [
        RawSample(
            shard=shard.uri,
            key=entry["key"],
            fields={
                field: data[offset, length]
                for field, offset, length in zip(
                    entry["fields"], entry["offsets"], entry["lengths"], strict=True
                )
                if field in wanted
            },
        )
        for entry in rows
    ]


def _read_spans(shard: ShardSummary, spans: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Read (offset, length) spans, those close to each other with one request."""
    data: dict[tuple[int, int], bytes] = {}
    start = 0
    while start < len(spans):
        stop, end = start + 1, sum(spans[start])
        while stop < len(spans) and spans[stop][0] - end <= _LARGEST_GAP:
            end = max(end, sum(spans[stop]))
            stop += 1
        base = spans[start][0]
        block = _open_shard(shard.uri, shard.bytes).read_at(end - base, base)
        for offset, length in spans[start:stop]:
            data[offset, length] = block[offset - base : offset - base + length]
        start = stop
    return data


@lru_cache(maxsize=128)
def _open_shard(uri: str, size: int) -> pa.NativeFile:
    filesystem, path = open_storage(uri)
    try:
        file = filesystem.open_input_file(path)
    except FileNotFoundError as error:
        raise ShardError(
            f"shard {uri}: is gone since it was indexed; put it back or start a new run"
        ) from error
    if file.size() != size:
        raise ShardError(
            f"shard {uri}: has {file.size()} bytes but was indexed with {size}; "
            "restore the shard, or start a new run to index it again"
        )
    return file


@lru_cache(maxsize=32)
def _index_table(uri: str) -> pa.Table:
    filesystem, path = open_storage(uri)
    return pq.read_table(path, filesystem=filesystem)
