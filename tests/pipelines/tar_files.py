"""Writers of tar shards with the standard library, and readers of their indexes."""

import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.shards.shard_index import ShardSummary, SourceIndex, index_shard

Members = list[tuple[str, bytes]]


def tar_bytes(members: Members, archive_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar of these members, in this order."""
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=archive_format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return target.getvalue()


def write_tar(path: Path, members: Members, archive_format: int = tarfile.GNU_FORMAT) -> str:
    """Write a tar of these members and return its path as text."""
    path.write_bytes(tar_bytes(members, archive_format))
    return str(path)


def index_of(*shards: str) -> SourceIndex:
    """Index local shards into the folder "index" beside the first one."""
    folder = Path(shards[0]).parent / "index"
    return SourceIndex([index_shard(shard, str(folder)) for shard in shards])


def indexed_samples(summary: ShardSummary) -> dict[str, dict[str, bytes]]:
    """Return the samples of a local shard as its index locates them: key -> field -> bytes."""
    data = Path(summary.uri).read_bytes()
    return {
        row["key"]: {
            field: data[offset : offset + length]
            for field, offset, length in zip(row["fields"], row["offsets"], row["lengths"], strict=True)
        }
        for row in pq.read_table(summary.index).to_pylist()
    }
