"""A shard open for reading, whatever its storage does."""

import pyarrow as pa

from pipelines.errors import ShardError
from pipelines.storage.files import open_file
from pipelines.storage.retry import with_retries


class ShardFile:
    """A shard to read from, opened again whenever storage fails.

    Args:
        uri: Path or URI of the tar file.
        size: Bytes that it has if it has not changed.
        storage_seconds: How long storage that fails is asked.
    """

    def __init__(self, uri: str, size: int, storage_seconds: float) -> None:
        self._uri = uri
        self._size = size
        self._storage_seconds = storage_seconds
        self._file: pa.NativeFile | None = None

    def read_at(self, length: int, offset: int) -> bytes:
        """Return bytes of the shard.

        Args:
            length: How many.
            offset: Where they begin.

        Raises:
            ShardError: The shard is gone, cannot be read, or has another size.
        """
        try:
            return with_retries(
                lambda: self._ask(length, offset), f"shard {self._uri}", self._uri, self._storage_seconds
            )
        except FileNotFoundError as error:
            raise ShardError(
                f"shard {self._uri}: is gone since it was indexed; put it back or start a new run"
            ) from error

    def _ask(self, length: int, offset: int) -> bytes:
        # Forgotten until it has answered, so that another attempt opens a file of its own.
        file, self._file = self._file or self._open(), None
        content = bytes(file.read_at(length, offset))
        if len(content) != length:
            raise OSError(f"{len(content)} of {length} bytes came from byte {offset} on")
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
