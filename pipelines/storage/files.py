"""Files by path or URI: local disk, S3, GCS and HDFS through pyarrow, everything else through fsspec.

Small files are written atomically: to `NAME.partial` first, then renamed, so that a reader sees the old file or the new
one, never half of one. On object stores, which have no rename, pyarrow copies and deletes.

What reads and writes small files retries for `RETRY_SECONDS` while remote storage fails, unless it is told otherwise.
"""

import os
import string
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote, unquote

import fsspec.core
import pyarrow as pa
from aiohttp import ClientError
from pyarrow import fs

from perceiver_dist.errors import UserError
from pipelines.storage.retry import RETRY_SECONDS, is_local, retried
from pipelines.storage.s3 import open_s3
from pipelines.storage.signatures import hide_signatures
from pipelines.storage.web_file import is_web, look_up, web_filesystem

STORAGE_ERRORS = (OSError, pa.ArrowException, ClientError)
"""What pyarrow and fsspec raise if storage rejects a request or does not answer."""

_ARROW_SCHEMES = {"s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs", "hdfs": "hdfs"}
"""Schemes that pyarrow reads, and its names for them. s3a and s3n are Hadoop's names."""

_NOT_QUOTED = string.punctuation.replace("#", "")
"""A URI of a file may contain what a URI in the strict sense may not, such as spaces; # begins no fragment."""


_MOVED = [fs.FileType.NotFound, fs.FileType.File]

_LAST_BYTES = 8


def absolute_uri(path: str) -> str:
    """Return an absolute local path for a path; return a URI unchanged.

    Args:
        path: Path or URI.
    """
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path or URI and the path within it.

    Args:
        uri: A local path, or a URI such as s3://bucket/key, gs://bucket/key, https://host/file.

    Returns:
        A pyarrow filesystem, and the path to hand to its methods.

    Raises:
        UserError: The URI is wrong, or of a kind that cannot be read here.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), absolute_uri(uri)
    if scheme == "file" and rest.startswith("/"):
        return fs.LocalFileSystem(), unquote(rest)
    if is_web(uri):
        return fs.PyFileSystem(fs.FSSpecHandler(web_filesystem())), uri
    try:
        if scheme in _ARROW_SCHEMES:
            arrow_uri = f"{_ARROW_SCHEMES[scheme]}://{quote(rest, safe=_NOT_QUOTED)}"
            return open_s3(arrow_uri) if arrow_uri.startswith("s3:") else fs.FileSystem.from_uri(arrow_uri)
        # pyarrow says what is wrong with a file: URI that has a host.
        if scheme == "file":
            return fs.FileSystem.from_uri(uri)
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError, *STORAGE_ERRORS) as error:
        raise UserError(
            f"'{hide_signatures(uri)}' cannot be opened ({str(error).splitlines()[0]}); use a path, s3://..., gs://... "
            "or https://..., or install what it needs on every node"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def open_file(uri: str) -> pa.NativeFile:
    """Open a file for random access reads.

    Args:
        uri: Path or URI.

    Returns:
        The open file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: Storage fails.
    """
    filesystem, path = open_storage(uri)
    if not isinstance(filesystem, fs.PyFileSystem):
        return filesystem.open_input_file(path)
    # Not through pyarrow's PyFileSystem: it reports every failed look-up as a missing file.
    return pa.PythonFile(filesystem.handler.fs.open(path, mode="rb"), mode="r")


def file_info(uri: str) -> fs.FileInfo:
    """Return type, size and modification time of a file or folder; type `NotFound` if there is none.

    The size is None if a web server does not say it.

    Args:
        uri: Path or URI.

    Raises:
        OSError: Storage fails.
    """
    if is_web(uri):
        try:
            return fs.FileInfo(uri, fs.FileType.File, size=look_up(uri).size)
        except FileNotFoundError:
            return fs.FileInfo(uri)
    filesystem, path = open_storage(uri)
    if not isinstance(filesystem, fs.PyFileSystem):
        return filesystem.get_file_info(path)
    try:
        found = filesystem.handler.fs.info(path)
    except FileNotFoundError:
        return fs.FileInfo(path)
    if found["type"] != "file":
        return fs.FileInfo(path, fs.FileType.Directory)
    return fs.FileInfo(path, fs.FileType.File, size=found["size"], mtime=found.get("mtime"))


def is_file(uri: str, retry_seconds: float = RETRY_SECONDS) -> bool:
    """Return whether there is a file.

    Args:
        uri: Path or URI.
        retry_seconds: Seconds for which to retry while remote storage fails.

    Raises:
        OSError: Storage fails.
    """
    return retried(lambda: file_info(uri), uri, retry_seconds, reads=True).type is fs.FileType.File


def join(base: str, *parts: str) -> str:
    """Join path parts to a path or URI with forward slashes.

    Args:
        base: Path or URI of a folder.
        *parts: Names of folders and files below it.
    """
    return "/".join([base.rstrip("/"), *parts])


def folder_of(path: str) -> str:
    """Return the absolute path or URI of a file's folder.

    Args:
        path: Path or URI of the file.
    """
    return absolute_uri(path).rpartition("/")[0]


def write_text(uri: str, content: str, retry_seconds: float = RETRY_SECONDS) -> None:
    """Write a small text file atomically, as UTF-8.

    Args:
        uri: Path or URI; a missing folder is created.
        content: Content of the file.
        retry_seconds: Seconds for which to retry while remote storage fails.

    Raises:
        OSError: Storage fails.
    """
    write_bytes(uri, content.encode(), retry_seconds)


def write_bytes(uri: str, data: bytes | pa.Buffer, retry_seconds: float = RETRY_SECONDS) -> None:
    """Write a file atomically.

    Args:
        uri: Path or URI; a missing folder is created.
        data: Content of the file.
        retry_seconds: Seconds for which to retry while remote storage fails.

    Raises:
        OSError: Storage fails.
    """
    retried(lambda: _write_once(uri, data), uri, retry_seconds, reads=False)


def _write_once(uri: str, data: bytes | pa.Buffer) -> None:
    filesystem, path = open_storage(uri)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(f"{path}.partial") as stream:
            stream.write(data)
    except OSError:
        with suppress(OSError):  # the first error says what is wrong
            filesystem.delete_file(f"{path}.partial")
        raise
    filesystem.move(f"{path}.partial", path)


def read_text(uri: str, retry_seconds: float = RETRY_SECONDS) -> str | None:
    """Return the content of a small UTF-8 file, or None if there is no such file.

    Args:
        uri: Path or URI.
        retry_seconds: Seconds for which to retry while remote storage fails.

    Raises:
        OSError: Storage fails, or sends something else than text of the file's size.
    """
    return retried(lambda: _read_once(uri), uri, retry_seconds, reads=True)


def _read_once(uri: str) -> str | None:
    if is_web(uri):
        # Not through pyarrow, which reports every failed look-up as a missing file.
        try:
            return bytes(web_filesystem().cat_file(uri)).decode()
        except FileNotFoundError:
            return None
    filesystem, path = open_storage(uri)
    info = filesystem.get_file_info(path)
    if info.type is not fs.FileType.File:
        return None
    if is_local(uri):
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read()).decode()
    with filesystem.open_input_stream(path) as stream:
        content = read_all(stream, info.size)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise OSError(f"what came is not the file ({error})") from error


def copy_file(local: str, uri: str, retry_seconds: float = RETRY_SECONDS) -> None:
    """Copy a local file to a path or URI atomically. The file is held in memory as a whole.

    Args:
        local: Path of the file.
        uri: Path or URI of the copy; a missing folder is created.
        retry_seconds: Seconds for which to retry while remote storage fails.
    """
    with open(local, "rb") as source:
        write_bytes(uri, source.read(), retry_seconds)


def write_chunks(uri: str, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a large file in chunks. When it returns, the file is durable: on the disk or in the object store.

    The write is not atomic. Callers that need that mark completion themselves, as a checkpoint's manifest does.

    Args:
        uri: Path or URI; a missing folder is created.
        chunks: Content of the file. The chunks are not copied.

    Raises:
        OSError: Storage fails, for example because the disk is full. The partial file is deleted.
    """
    filesystem, path = open_storage(uri)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(path) as stream:
            for chunk in chunks:
                stream.write(chunk)
        if isinstance(filesystem, fs.LocalFileSystem):
            # Until fsync the data may be in the page cache only, and network file systems report a full disk only now.
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # the first error says what is wrong
            _delete_once(uri)
        raise


def read_all(file: pa.NativeFile, size: int) -> bytearray:
    """Read some bytes from an open file, and check that they came.

    If a store sends nothing with status 200, pyarrow says that all came, and leaves the buffer as it was.

    Args:
        file: The file, at the first of them.
        size: Number of bytes.

    Raises:
        OSError: Fewer came, or none.
    """
    # No text has this byte, and no number that a computation gives has only it.
    content = bytearray(b"\xff") * size
    count = file.readinto(content)
    if count != size or (size and set(content[-_LAST_BYTES:]) == {0xFF}):
        raise OSError(f"{count if count != size else 0} of {size} bytes came")
    return content


def list_folder(uri: str, retry_seconds: float = RETRY_SECONDS) -> dict[str, int | None]:
    """Return the entries of a folder by name: a file's size in bytes, None for a folder.

    Args:
        uri: Path or URI. A missing folder has no entries.
        retry_seconds: Seconds for which to retry while remote storage fails.

    Raises:
        OSError: Storage fails.
    """
    filesystem, path = open_storage(uri)
    entries = retried(
        lambda: filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)),
        uri,
        retry_seconds,
        reads=True,
    )
    return {entry.base_name: entry.size if entry.type is fs.FileType.File else None for entry in entries}


def delete(uri: str, retry_seconds: float = RETRY_SECONDS) -> None:
    """Delete a file, or a folder with its content. A missing one is no error.

    Args:
        uri: Path or URI.
        retry_seconds: Seconds for which to retry while remote storage fails.

    Raises:
        OSError: Storage fails.
    """
    retried(lambda: _delete_once(uri), uri, retry_seconds, reads=False)


def _delete_once(uri: str) -> None:
    filesystem, path = open_storage(uri)
    kind = filesystem.get_file_info(path).type
    if kind is fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind is not fs.FileType.NotFound:
        filesystem.delete_file(path)


def rename(uri: str, name: str) -> None:
    """Rename a file within its folder.

    Args:
        uri: Path or URI of the file.
        name: The new name.

    Raises:
        OSError: Storage fails.
    """
    filesystem, path = open_storage(uri)
    target = join(path.rpartition("/")[0], name)

    def move() -> None:
        try:
            filesystem.move(path, target)
        except OSError:
            # Moved by an attempt whose answer was lost.
            if [filesystem.get_file_info(file).type for file in (path, target)] != _MOVED:
                raise

    retried(move, uri, reads=False)


def reason_of(error: Exception) -> str:
    """Return the reason of a storage error in a few words: the meaning of its errno, else its first line.

    Args:
        error: The error that storage raised.
    """
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else (str(error) or type(error).__name__).splitlines()[0]
