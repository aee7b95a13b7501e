"""Random access reads from one shard, with retries."""

import pyarrow as pa

from pipelines.errors import ShardError
from pipelines.storage.files import open_file
from pipelines.storage.retry import with_retries


class ShardFile:
    """A shard open for reading. It is opened lazily, and reopened after a storage failure.

    Args:
        uri: Path or URI of the tar file.
        size: Size in bytes that the shard was indexed with.
        storage_seconds: Seconds for which requests to failing remote storage are retried.
    """

    def __init__(self, uri: str, size: int, storage_seconds: float) -> None:
        self._uri = uri
        self._size = size
        self._storage_seconds = storage_seconds
        self._file: pa.NativeFile | None = None

    def read_at(self, length: int, offset: int) -> bytes:
        """Return a range of bytes.

        Args:
            length: Number of bytes.
            offset: Position of the first byte.

        Raises:
            ShardError: The shard is missing, cannot be read, or its size has changed.
        """
        try:
            return with_retries(
                lambda: self._read_once(length, offset),
                f"shard {self._uri}",
                self._uri,
                self._storage_seconds,
            )
        except FileNotFoundError as error:
            raise ShardError(
                f"shard {self._uri}: is missing but was there when it was indexed; restore it or start a new run"
            ) from error

    def _read_once(self, length: int, offset: int) -> bytes:
        # The handle is kept only while reads succeed. After a failure or a stall, the retry opens its own: the stalled
        # request may still be using the old one in its thread.
        file, self._file = self._file or self._open(), None
        content = bytes(file.read_at(length, offset))
        if len(content) != length:
            raise OSError(f"read {len(content)} of {length} bytes at byte {offset}")
        self._file = file
        return content

    def _open(self) -> pa.NativeFile:
        file = open_file(self._uri)
        if file.size() != self._size:
            raise ShardError(
                f"shard {self._uri}: has {file.size()} bytes but was indexed with {self._size}; "
                "restore the shard, or start a new run to index it again"
            )
        return file
