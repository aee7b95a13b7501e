"""Random access reader of samples: byte ranges of shards, located by the index.

On object storage the number of requests limits the throughput, so samples that are neighbours in a shard share one. The
plan provides neighbours: it shuffles chunks of `data.chunk_size` consecutive samples, not single samples.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import pyarrow as pa

from pipelines.shards.shard_index import ShardSummary, SourceIndex, index_table
from pipelines.shards.source import DEFAULT_DATA, DataConfig
from pipelines.storage.retry import with_retries
from pipelines.storage.shard_file import ShardFile

_MAX_GAP_BYTES = 4096
"""Unwanted bytes to read between two wanted fields rather than send another request: tar headers and padding (up to
1.5 KiB), or a small field such as a caption. Transferring them takes far less time than a request does.
"""

_MAX_OPEN_SHARDS = 128
"""Per process: far below the usual limit of 1,024 open files."""

_MAX_INDEX_TABLES = 32
"""Per process, in memory. A row takes some 75 bytes, so 32 shards of 10,000 samples take 24 MB."""


@dataclass(frozen=True)
class RawSample:
    """The undecoded fields of one sample.

    Attributes:
        shard: Path or URI of the tar file, without a signature.
        key: The sample's key within the shard.
        fields: Bytes by field name ("jpg", "cls", ...), of the requested fields.
        problem: Why the sample cannot be used and was not read; "" if no problem is known.
        unread: Names of its other fields.
    """

    shard: str
    key: str
    fields: dict[str, bytes]
    problem: str = ""
    unread: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Key and shard, for messages."""
        return f"sample '{self.key}' of shard {self.shard}"


def read_samples(
    index: SourceIndex, samples: Sequence[int], wanted: frozenset[str], data: DataConfig = DEFAULT_DATA
) -> list[RawSample]:
    """Read samples. Those that are neighbours in a shard are read with one request.

    Args:
        index: The source's index.
        samples: Sample numbers, in any order; a number may appear more than once.
        wanted: Names of the fields to read. Other fields are never transferred, but for small ones in between.
        data: The size limit of a field and the deadline of storage requests.

    Returns:
        The samples, in the order of `samples`.

    Raises:
        ShardError: A shard is missing, cannot be read, or its size has changed since it was indexed.
    """
    read: dict[int, RawSample] = {}
    # In storage order, so that neighbours are adjacent; a number that appears twice is read once.
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
                field: Span(*where)
                for field, *where in zip(
                    entry["fields"], entry["offsets"], entry["lengths"], entry["checksums"], strict=True
                )
                if field in wanted
            },
            unread=tuple(field for field in entry["fields"] if field not in wanted),
        )
        for entry in stored_index(shard, data.storage_seconds).slice(row, count).to_pylist()
    ]
    entries = [entry.checked(data.limits.field_bytes) for entry in entries]
    content = _read_spans(
        shard, sorted({span for entry in entries for span in entry.spans.values()}), data.storage_seconds
    )
    return [
        RawSample(
            shard.shown_uri,
            entry.key,
            {field: content[span] for field, span in entry.spans.items()},
            entry.problem or _damage(entry, content),
            entry.unread,
        )
        for entry in entries
    ]


class Span(NamedTuple):
    """Where a field is in its shard.

    Attributes:
        offset: Its first byte.
        length: Number of bytes.
        checksum: CRC-32 of its content when the shard was indexed.
    """

    offset: int
    length: int
    checksum: int


@dataclass(frozen=True)
class _Entry:
    """A sample's index row: key, known problem, spans of the wanted fields, and names of the others."""

    key: str
    problem: str
    spans: dict[str, Span]
    unread: tuple[str, ...]

    def checked(self, max_bytes: int) -> "_Entry":
        """Return the entry; without spans, so that nothing is read, if the sample has a problem or is too large."""
        too_large = [(field, span.length) for field, span in self.spans.items() if span.length > max_bytes]
        problem = self.problem
        if too_large and not problem:
            field, length = too_large[0]
            problem = f"field '{field}' has {length} bytes, more than data.limits.field_bytes {max_bytes}"
        return replace(self, problem=problem, spans={}) if problem else self


def _damage(entry: _Entry, content: dict[Span, bytes]) -> str:
    """Return which field is not the indexed one; "" if all are. From remote storage only those are accepted."""
    for field, span in entry.spans.items():
        if zlib.crc32(content[span]) != span.checksum:
            return f"field '{field}' has changed since the shard was indexed"
    return ""


def _read_spans(shard: ShardSummary, spans: list[Span], storage_seconds: float) -> dict[Span, bytes]:
    """Read sorted spans; those at most `_MAX_GAP_BYTES` apart share a request."""
    data: dict[Span, bytes] = {}
    start = 0
    while start < len(spans):
        stop, end = start + 1, spans[start].offset + spans[start].length
        while stop < len(spans) and spans[stop].offset - end <= _MAX_GAP_BYTES:
            end = max(end, spans[stop].offset + spans[stop].length)
            stop += 1
        together = spans[start:stop]
        base = together[0].offset
        block = _open_shard(shard.uri, shard.bytes, storage_seconds).read_at(
            end - base, base, partial(_check, together)
        )
        data.update((span, _part(block, base, span)) for span in together)
        start = stop
    return data


def _part(block: bytes, base: int, span: Span) -> bytes:
    return block[span.offset - base : span.offset - base + span.length]


def _check(spans: list[Span], block: bytes) -> None:
    """Check what a remote storage has sent: it may be another object, or nothing, in the right length.

    Raises:
        OSError: It is not what was indexed.
    """
    base = spans[0].offset
    if any(zlib.crc32(_part(block, base, span)) != span.checksum for span in spans):
        raise OSError(f"what came at byte {base} is not what was indexed")


@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open_shard(uri: str, size: int, storage_seconds: float) -> ShardFile:
    return ShardFile(uri, size, storage_seconds)


@lru_cache(maxsize=_MAX_INDEX_TABLES)
def stored_index(shard: ShardSummary, storage_seconds: float) -> pa.Table:
    """Return a shard's index, as `index_table` does; it is kept in memory.

    Args:
        shard: The shard.
        storage_seconds: Seconds for which requests to failing remote storage are retried.

    Raises:
        ShardError: Storage fails.
    """
    return with_retries(lambda: index_table(shard), f"index {shard.index}", shard.index, storage_seconds)
