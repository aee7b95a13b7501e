"""Files on web servers (http://, https://): read in byte ranges or, from servers that have none, copied whole.

A shard is read in small ranges and in random order. Where a server does not answer such requests, does not say how long
a file is, or compresses what it sends, each node copies the whole shard once, to a folder under its temporary folder
(`TMPDIR`), which all processes of the user on that node share. So such a source costs every node the transfer and the
disk space of all its shards. The order of samples does not change, nor does anything about resuming.

A copy is kept for the next run. It goes by the file's address, size, and ETag or modification time; if the server has
neither, a copy that was used within a day counts as current. Copies that were not used for a day are deleted when there
is no room for a new one.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from aiohttp import ClientTimeout
from fsspec.asyn import sync

from pipelines.errors import ShardError
from pipelines.storage.signatures import hide_signatures

_PLAIN = {"Accept-Encoding": "identity"}
"""A range of a compressed file would be no range of the shard."""

_KEEP_FREE = 1 << 30
"""Bytes that copies leave free on their disk: 1 GiB for Ray's own files, which may be on the same one."""

_UNUSED_SECONDS = 24 * 3600.0
"""After this time a copy may be deleted. A run that continues has used each of its shards, or copies it again."""

_PIECE = 1 << 20
"""Bytes in memory of a file that is copied."""


@dataclass(frozen=True)
class WebFile:
    """What a server says about a file.

    Attributes:
        size: Size in bytes; None if the server does not say it.
        ranges: Whether the server sends byte ranges of it.
        version: ETag or modification time, which change with the content; "" if the server has neither.
    """

    size: int | None
    ranges: bool
    version: str


def is_web(uri: str) -> bool:
    """Return whether a URI names a file on a web server.

    Args:
        uri: Path or URI.
    """
    return uri.startswith(("http://", "https://"))


def web_filesystem() -> Any:
    """Return fsspec's file system of web servers, with the options of FSSPEC_HTTP and FSSPEC_HTTPS.

    It uses the proxies of the environment (HTTPS_PROXY, NO_PROXY, ...) and `~/.netrc`, as other programs do; aiohttp
    does so only if told to.
    """
    client: dict[str, Any] = {"trust_env": True}
    for protocol in ("http", "https"):
        client |= fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
    return fsspec.filesystem("https", client_kwargs=client)


def look_up(uri: str) -> WebFile:
    """Ask a server about a file: one request for its first byte, which answers everything.

    Not HEAD, which many servers forbid where an address is signed for reading.

    Args:
        uri: URI of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ShardError: The URI is none.
        OSError: The server cannot be reached, or does not answer.
        ClientError: The server rejects the request; aiohttp's error.
    """
    try:
        urlsplit(uri).port  # noqa: B018 # raises an error if it is not a number
        found: WebFile = sync(web_filesystem().loop, _look_up, uri)
    except ValueError as error:
        raise ShardError(f"shard {hide_signatures(uri)}: is not a URL ({error}); correct it") from error
    return found


async def _look_up(uri: str) -> WebFile:
    async with _get(uri, await web_filesystem().set_session(), {"Range": "bytes=0-0"}) as response:
        if response.status in (404, 410):
            raise FileNotFoundError(uri)
        headers = response.headers
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        total = re.fullmatch(r"bytes (?:0-0|\*)/(\d+)", headers.get("Content-Range", ""))
        plain = headers.get("Content-Encoding", "identity") in ("", "identity")
        # Status 416: an empty file has no first byte.
        if total and plain and response.status in (206, 416):
            return WebFile(int(total[1]), True, version)
        response.raise_for_status()
        length = headers.get("Content-Length") if plain and response.status == 200 else None
        return WebFile(int(length) if length else None, False, version)


def _get(uri: str, session: Any, headers: dict[str, str], **options: Any) -> Any:
    """Return a GET request with the options of fsspec's file system."""
    filesystem = web_filesystem()
    given = {**filesystem.kwargs, **options}
    given["headers"] = {**given.get("headers", {}), **_PLAIN, **headers}
    return session.get(filesystem.encode_url(uri), **given)


class WebRanges:
    """A file on a server that sends byte ranges. Each read is one request for exactly its bytes.

    Args:
        uri: URI of the file.
        size: Its size in bytes.
    """

    def __init__(self, uri: str, size: int) -> None:
        self._uri = uri
        self._size = size

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self._size

    def read_at(self, length: int, offset: int) -> bytes:
        """Return a range of bytes.

        Args:
            length: Number of bytes.
            offset: Position of the first byte.

        Raises:
            OSError: The server cannot be reached, or does not answer.
            ClientError: The server rejects the request; aiohttp's error.
        """
        filesystem = web_filesystem()
        headers = {**filesystem.kwargs.get("headers", {}), **_PLAIN}
        return bytes(filesystem.cat_file(self._uri, start=offset, end=offset + length, headers=headers))


class WebCopy:
    """A local copy of a file on a server that sends no byte ranges.

    Args:
        path: Path of the copy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Open until this process ends, so that it can be read even if it is deleted.
        self._file = pa.OSFile(str(path))

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return int(self._file.size())

    def read_at(self, length: int, offset: int) -> bytes:
        """Return a range of bytes.

        Args:
            length: Number of bytes.
            offset: Position of the first byte.
        """
        return bytes(self._file.read_at(length, offset))

    def delete(self) -> None:
        """Delete the copy, for everyone on this machine who has not opened it."""
        self._path.unlink(missing_ok=True)


def whole_copy(uri: str, found: WebFile, stall_seconds: float) -> WebCopy:
    """Open the local copy of a file, which is made if there is none.

    Args:
        uri: URI of the file.
        found: What `look_up` found.
        stall_seconds: Seconds without a byte after which the server counts as stalled.

    Raises:
        ShardError: There is no room for it.
        OSError: The server cannot be reached, or stalls.
        ClientError: The server rejects the request; aiohttp's error.
    """
    identity = f"{hide_signatures(uri)}|{found.version}|{found.size}"
    copy = _folder() / hashlib.sha256(identity.encode()).hexdigest()[:24]
    with _locked(copy):
        if copy.exists():
            os.utime(copy)
            return WebCopy(copy)
        _make_room(uri, copy.parent, found.size or 0)
        partial = copy.with_suffix(".partial")
        try:
            sync(web_filesystem().loop, _download, uri, partial, stall_seconds)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ShardError(_no_room(uri, copy.parent)) from error
        partial.rename(copy)
        return WebCopy(copy)


async def _download(uri: str, target: Path, stall_seconds: float) -> None:
    timeout = ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
    async with _get(uri, await web_filesystem().set_session(), {}, timeout=timeout) as response:
        response.raise_for_status()
        with target.open("wb") as file:
            async for piece in response.content.iter_chunked(_PIECE):
                file.write(piece)


def _folder() -> Path:
    """Return the folder of the copies, which nobody else may read or replace.

    Raises:
        ShardError: It belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"perceiver_dist_shards_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ShardError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder


@contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """Let one process at a time make a copy; the others wait for it."""
    with copy.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_room(uri: str, folder: Path, size: int) -> None:
    """Delete copies that have not been used for a day if there is no room for this one.

    Raises:
        ShardError: There is still no room.
    """
    if shutil.disk_usage(folder).free >= size + _KEEP_FREE:
        return
    for file in folder.iterdir():
        # Whoever has opened a deleted copy can still read it.
        if time.time() - file.stat().st_mtime > _UNUSED_SECONDS:
            file.unlink(missing_ok=True)
    if shutil.disk_usage(folder).free < size + _KEEP_FREE:
        raise ShardError(_no_room(uri, folder))


def _no_room(uri: str, folder: Path) -> str:
    return (
        f"shard {hide_signatures(uri)}: its server sends no byte ranges, so it is copied as a whole, and {folder} has "
        "no room for it; set TMPDIR to a larger disk, or copy the shards to s3://, gs://, a folder, or a server with "
        "byte ranges"
    )
