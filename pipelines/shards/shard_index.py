"""Index of a source: the byte range of every field of every sample, for random access to tar shards.

Each shard has one Parquet file, made by reading the shard once from end to end. It has a row per sample with its key
and, for each field, name, byte offset, length and CRC-32. Its metadata holds the shard's size, modification time and
SHA-256.
Fields are grouped by key wherever they are in the tar, so members may have any order. A shard is indexed once: the name
of its index file is a hash of its URI, size and modification time.

Nothing is ever extracted to disk, so a member named `../x` is harmless. But a sample with such a key, with a link in
place of a file, or with a field twice is not what its author meant. It stays in the index with its problem, so that it
keeps its sample number and the order of all others, and is rejected as a bad sample when it is read.
"""

import hashlib
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import ShardError
from pipelines.shards.sample_grouping import IndexRow, group_by_key
from pipelines.shards.source import DEFAULT_DATA
from pipelines.storage.files import file_info, join, open_storage
from pipelines.storage.retry import is_local, with_retries
from pipelines.storage.shard_file import ShardFile, open_web_file
from pipelines.storage.signatures import hide_signatures

_FORMAT = 4
"""Version of the index files, part of their names. Increase it when they change, so that old ones are not found."""

_METADATA_KEY = b"shard"

_END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE
"""A tar ends with two blocks of zeros."""

_READ_BYTES = 1 << 22
"""4 MiB: each read is a request to storage, so few and large ones, in little memory."""

_SUMMARIES_PER_PIECE = 1 << 16
"""Summaries held as Python objects at the same time; some 45 MB."""

_COUNTED_FIELDS = 32
"""Fields per shard whose samples are counted. Names with dots in the wrong places can make a field for every sample."""

_COMPRESSION = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
"""Compression formats by the first two bytes of their files."""


@dataclass(frozen=True)
class ShardSummary:
    """Facts about one shard as a whole.

    Attributes:
        uri: Path or URI of the tar file.
        index: Path or URI of its index file.
        bytes: Size of the tar file.
        modified: Modification time in nanoseconds since 1970; 0 if storage has none.
        sha256: Hex digest of the tar file.
        samples: Number of samples.
        fields: Number of samples by field, for the most frequent fields.
        strays: Number of members that are no part of a sample.
    """

    uri: str
    index: str
    bytes: int
    modified: int
    sha256: str
    samples: int
    fields: Mapping[str, int] = field(default_factory=dict, compare=False)
    strays: int = 0

    @property
    def shown_uri(self) -> str:
        """The URI without a signature, for messages and files."""
        return hide_signatures(self.uri)


_SUMMARY = pa.schema(
    [
        ("uri", pa.string()),
        ("index", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.int64()),
        ("sha256", pa.string()),
        ("samples", pa.int64()),
    ]
)


class SourceIndex:
    """All shards of a source, with their samples numbered consecutively across shards.

    Summaries are kept in an Arrow table, which the processes of a node share through Ray's object store. A million
    shards as Python objects would take most of a gigabyte in each process.

    Args:
        shards: Summaries in the order in which their samples are numbered.

    Attributes:
        shards: The summaries, without their fields and strays.
        fields: Number of samples by field, for the most frequent fields of each shard.
        strays: Number of members that are no part of a sample.
    """

    def __init__(self, shards: Iterable[ShardSummary]) -> None:
        self.fields: Counter[str] = Counter()
        self.strays = 0
        remaining = map(self._counted, shards)
        pieces = [pa.Table.from_pylist([], _SUMMARY)]
        while rows := [asdict(shard) for shard in islice(remaining, _SUMMARIES_PER_PIECE)]:
            pieces.append(pa.Table.from_pylist(rows, _SUMMARY))
        table = pa.concat_tables(pieces).combine_chunks()
        self.shards = ShardSummaries(table)
        self._starts = np.concatenate([[0], np.cumsum(table["samples"].to_numpy())])

    def _counted(self, shard: ShardSummary) -> ShardSummary:
        self.fields.update(shard.fields)
        self.strays += shard.strays
        return replace(shard, fields={}, strays=0)

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return int(self._starts[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """Return (shard number, row within the shard) of a sample number.

        Args:
            sample: 0 <= sample < samples.
        """
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return shard, sample - int(self._starts[shard])


class ShardSummaries:
    """Sequence view of a table of summaries. Each summary is created on access.

    Args:
        table: One column per field of `ShardSummary`.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        """Return the number of shards."""
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[ShardSummary]:
        """Yield all summaries in order."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> ShardSummary:
        """Return the summary of one shard.

        Args:
            number: Number of the shard, from 0.
        """
        return ShardSummary(**{column: self._table[column][number].as_py() for column in _SUMMARY.names})


def find_index(
    uri: str, index_directory: str, storage_seconds: float = DEFAULT_DATA.storage_seconds
) -> tuple[ShardSummary, bool]:
    """Look up a shard in the index folder, without reading the shard.

    Args:
        uri: Path or URI of a tar file.
        index_directory: Path or URI of the folder of index files.
        storage_seconds: Seconds for which requests to failing remote storage are retried.

    Returns:
        The shard's summary and True if it is indexed. Otherwise a summary without digest and with 0 samples, and False.

    Raises:
        ShardError: The shard is missing, or its storage or the index folder's fails.
    """
    info = with_retries(lambda: file_info(uri), f"shard {uri}", uri, storage_seconds)
    shown = hide_signatures(uri)
    if info.type is not fs.FileType.File:
        raise ShardError(f"shard {shown}: no such file; check the source's shards")
    size = open_web_file(uri, storage_seconds).size() if info.size is None else info.size
    modified = info.mtime_ns or 0
    # Without the signature, so that a shard is not indexed again whenever its address is signed again.
    name = hashlib.sha256(f"{_FORMAT}|{shown}|{size}|{modified}".encode()).hexdigest()[:24]
    index_uri = join(index_directory, f"{name}.parquet")
    expected = ShardSummary(uri, index_uri, size, modified, sha256="", samples=0)
    found = with_retries(lambda: _read_summary(expected), f"index {index_uri}", index_uri, storage_seconds)
    return found or expected, found is not None


def _read_summary(expected: ShardSummary) -> ShardSummary | None:
    """Return the summary in the index of a shard; None if it is not indexed.

    Raises:
        OSError: Storage fails, or sends something else.
    """
    if file_info(expected.index).type is not fs.FileType.File:
        return None
    try:
        filesystem, path = open_storage(expected.index)
        stored = json.loads(pq.read_schema(path, filesystem=filesystem).metadata[_METADATA_KEY])
        found = ShardSummary(**{**stored, "uri": expected.uri, "index": expected.index})
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        if is_local(expected.index):
            return None  # damaged: the shard is indexed again
        raise OSError(f"what came is no index ({str(error).splitlines()[0]})") from error
    if (found.bytes, found.modified, stored["uri"]) != (
        expected.bytes,
        expected.modified,
        expected.shown_uri,
    ):
        raise OSError(f"the index of {stored['uri']} came instead")
    return found


def index_table(shard: ShardSummary) -> pa.Table:
    """Return a shard's index: a row per sample with key, problem, and each field's name, offset, length and CRC-32.

    Args:
        shard: The shard.

    Raises:
        OSError: Storage fails, or sends something else.
    """
    filesystem, path = open_storage(shard.index)
    try:
        table = pq.read_table(path, filesystem=filesystem)
        stored = json.loads(table.schema.metadata[_METADATA_KEY])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise OSError(f"what came is no index ({str(error).splitlines()[0]})") from error
    if stored["sha256"] != shard.sha256:
        raise OSError(f"the index of {stored['uri']} came instead")
    return table


def index_shard(
    uri: str, index_directory: str, storage_seconds: float = DEFAULT_DATA.storage_seconds
) -> ShardSummary:
    """Index one shard unless it is already indexed.

    Args:
        uri: Path or URI of an uncompressed tar file.
        index_directory: Path or URI of the folder of index files; created if missing.
        storage_seconds: Seconds for which requests to failing remote storage are retried.

    Returns:
        The shard's summary.

    Raises:
        ShardError: The shard is missing, empty, compressed, truncated, damaged or holds no samples, or its storage or
            the index folder's fails.
    """
    known, indexed = find_index(uri, index_directory, storage_seconds)
    if indexed:
        return known
    shard = ShardFile(uri, known.bytes, storage_seconds)
    stream = _HashingStream(shard, known.bytes)
    shown = hide_signatures(uri)
    try:
        rows, strays = group_by_key(shown, _members(shown, known.bytes, stream))
    except ShardError:
        shard.discard_copy()
        raise
    counts = Counter(name for row in rows.values() for name in row.fields)
    summary = replace(
        known,
        sha256=stream.hexdigest(),
        samples=len(rows),
        fields=dict(counts.most_common(_COUNTED_FIELDS)),
        strays=strays,
    )
    with_retries(
        lambda: _write_index(summary, rows), f"index {summary.index}", summary.index, storage_seconds
    )
    return summary


class _HashingStream:
    """Sequential reader of a shard that computes its digest and keeps its first bytes and the end of its content.

    The content ends after the last byte that is not zero; what follows is the end mark and padding of the tar.
    """

    def __init__(self, shard: ShardFile, size: int) -> None:
        self._shard = shard
        self._size = size
        self._digest = hashlib.sha256()
        self._position = 0
        self.start = b""
        self.content_end = 0

    def read(self, size: int) -> bytes:
        count = min(size, self._size - self._position)
        data = self._shard.read_at(count, self._position) if count > 0 else b""
        self._digest.update(data)
        self.start = self.start or data[:4]
        content = data.rstrip(b"\0")
        if content:
            self.content_end = self._position + len(content)
        self._position += len(data)
        return data

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _members(uri: str, size: int, stream: _HashingStream) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield the members of a tar except folders, each with the CRC-32 of its content.

    Then read to the end, so that the digest covers the whole shard.

    Raises:
        ShardError: The file is empty, compressed, truncated, damaged or not a tar.
    """
    # Names that are not UTF-8 are escaped, not replaced, so that different names stay different keys.
    options = {"bufsize": _READ_BYTES, "encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with tarfile.open(fileobj=stream, mode="r|", **options) as archive:  # type: ignore[call-overload]
            for member in archive:
                if not member.isdir():
                    yield member, _checksum(archive, member)
            end = archive.offset
    except tarfile.TarError as error:
        compression = _COMPRESSION.get(stream.start[:2])
        if compression:
            raise ShardError(
                f"shard {uri}: is compressed ({compression}); byte ranges need a plain tar: decompress it first"
            ) from error
        if size == 0:
            raise ShardError(f"shard {uri}: is empty (0 bytes); write it again or leave it out") from error
        raise ShardError(
            f"shard {uri}: is truncated or not a tar ({error}) at {size} bytes; write it again or leave it out"
        ) from error
    while stream.read(_READ_BYTES):
        pass
    if size - end < _END_OF_ARCHIVE:
        raise ShardError(
            f"shard {uri}: is truncated: its {size} bytes do not end in the tar end mark; "
            "write it again or leave it out"
        )
    if stream.content_end > end:
        # tarfile silently stops at a damaged header, and at the end of the first of two concatenated tars.
        raise ShardError(
            f"shard {uri}: cannot be read beyond byte {end} of {size}: a damaged header, or two tars joined; "
            "write it again or leave it out"
        )


def _checksum(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """Return the CRC-32 of a member's content; 0 of one that is no plain file, which is not read as a field."""
    checksum = 0
    content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
    while content is not None and (piece := content.read(_READ_BYTES)):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _write_index(summary: ShardSummary, rows: dict[str, IndexRow]) -> None:
    filesystem, path = open_storage(summary.index)
    spans = [row.fields.values() for row in rows.values()]
    columns: dict[str, pa.Array] = {
        "key": pa.array(rows.keys(), pa.string()),
        "problem": pa.array([row.problem for row in rows.values()], pa.string()),
        "fields": pa.array([list(row.fields) for row in rows.values()], pa.list_(pa.string())),
        "offsets": pa.array([[offset for offset, *_ in of] for of in spans], pa.list_(pa.int64())),
        "lengths": pa.array([[length for _, length, _ in of] for of in spans], pa.list_(pa.int64())),
        "checksums": pa.array([[checksum for *_, checksum in of] for of in spans], pa.list_(pa.uint32())),
    }
    metadata: dict[Any, Any] = {_METADATA_KEY: json.dumps(asdict(replace(summary, uri=summary.shown_uri)))}
    table = pa.table(columns).replace_schema_metadata(metadata)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    # Written atomically under a unique temporary name: two tasks may index the same shard at the same time, when two
    # sources or two runs share it. Either result is the same.
    partial = f"{path}.{uuid4().hex}.partial"
    pq.write_table(table, partial, filesystem=filesystem)
    filesystem.move(partial, path)
