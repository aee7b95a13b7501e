"""Random access reads from one shard, with retries."""

from collections.abc import Callable

import pyarrow as pa

from pipelines.errors import ShardError
from pipelines.storage.files import open_file
from pipelines.storage.retry import STALLS, is_local, with_retries
from pipelines.storage.signatures import hide_signatures
from pipelines.storage.web_file import WebCopy, WebRanges, is_web, look_up, whole_copy


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
        self._name = f"shard {hide_signatures(uri)}"
        self._file: pa.NativeFile | None = None
        self._web: WebRanges | WebCopy | None = None

    def read_at(self, length: int, offset: int, check: Callable[[bytes], None] = lambda _: None) -> bytes:
        """Return a range of bytes.

        Args:
            length: Number of bytes.
            offset: Position of the first byte.
            check: Called with what a remote storage has sent; it is asked again if this raises an OSError.

        Raises:
            ShardError: The shard is missing, cannot be read, or its size has changed.
        """
        try:
            if is_web(self._uri) and self._web is None:
                web = open_web_file(self._uri, self._storage_seconds)
                self._check_size(web.size())
                self._web = web
            return with_retries(
                lambda: self._read_once(length, offset, check), self._name, self._uri, self._storage_seconds
            )
        except FileNotFoundError as error:
            raise ShardError(
                f"{self._name}: is missing but was there when it was indexed; restore it or start a new run"
            ) from error

    def discard_copy(self) -> None:
        """Delete the local copy, if the shard was copied as a whole: it is damaged, so the next run copies it again."""
        if isinstance(self._web, WebCopy):
            self._web.delete()

    def _read_once(self, length: int, offset: int, check: Callable[[bytes], None]) -> bytes:
        # The handle is kept only while reads succeed. After a failure or a stall, the retry opens its own: the stalled
        # request may still be using the old one in its thread. Web files have no handle.
        file, self._file = self._web or self._file, None
        if file is None:
            file = open_file(self._uri)
            self._check_size(file.size())
        content = bytes(file.read_at(length, offset))
        if len(content) != length:
            raise OSError(f"read {len(content)} of {length} bytes at byte {offset}")
        if not is_local(self._uri):
            check(content)
        if self._web is None:
            self._file = file
        return content

    def _check_size(self, size: int) -> None:
        if size != self._size:
            raise ShardError(
                f"{self._name}: has {size} bytes but was indexed with {self._size}; "
                "restore the shard, or start a new run to index it again"
            )


def open_web_file(uri: str, storage_seconds: float) -> WebRanges | WebCopy:
    """Open a shard on a web server. If its server sends no byte ranges, it is copied to this machine first.

    Args:
        uri: URI of the shard.
        storage_seconds: Seconds for which failing requests are retried.

    Raises:
        FileNotFoundError: There is no such file.
        ShardError: The server fails, or there is no room for a copy.
    """
    name = f"shard {uri}"
    found = with_retries(lambda: look_up(uri), name, uri, storage_seconds)
    if found.ranges and found.size is not None:
        return WebRanges(uri, found.size)
    stall_seconds = storage_seconds * STALLS
    return with_retries(
        lambda: whole_copy(uri, found, stall_seconds), name, uri, storage_seconds, watched=False
    )
