"""Opening files by path or URI: local folders, S3 and GCS through pyarrow, everything else through fsspec."""

import fnmatch
import os
from collections.abc import Iterable
from urllib.parse import urlsplit

import braceexpand
import fsspec.core
import pyarrow as pa
from aiohttp import ClientError
from pyarrow import fs

from perceiver_dist.errors import UserError
from pipelines.errors import ShardError

STORAGE_ERRORS = (OSError, pa.ArrowException)
"""What a storage raises that refuses or does not answer."""
_ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "hdfs"}


def absolute_uri(path: str) -> str:
    """Return `path` unchanged if it is a URI, else as an absolute local path.

    Args:
        path: A local path or a URI.
    """
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path or URI and the path within it.

    Args:
        uri: A local path, or a URI such as s3://bucket/key, gs://bucket/key, https://host/file.

    Returns:
        A pyarrow filesystem, and the path to hand to its methods.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), absolute_uri(uri)
    if urlsplit(uri).scheme in _ARROW_SCHEMES:
        return fs.FileSystem.from_uri(uri)
    filesystem, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def is_local(uri: str) -> bool:
    """Return whether a path or URI is of a file on this machine.

    Args:
        uri: Path or URI.
    """
    return "://" not in uri or urlsplit(uri).scheme == "file"


def open_file(uri: str) -> pa.NativeFile:
    """Open a file for reading at any place.

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
    # Not through pyarrow: it takes every failure to look a file up for its absence.
    try:
        return pa.PythonFile(filesystem.handler.fs.open(path, mode="rb"), mode="r")
    except FileNotFoundError as error:
        cause = _cause_of_absence(error)
        if cause is None:
            raise
        raise cause from error


def file_info(uri: str) -> fs.FileInfo:
    """Return type, size and modification time of what there is under a path or URI.

    Args:
        uri: Path or URI.

    Raises:
        OSError: Storage fails.
    """
    filesystem, path = open_storage(uri)
    if not isinstance(filesystem, fs.PyFileSystem):
        return filesystem.get_file_info(path)
    try:
        found = filesystem.handler.fs.info(path)
    except FileNotFoundError as error:
        cause = _cause_of_absence(error)
        if cause is None:
            return fs.FileInfo(path)
        raise cause from error
    if found["type"] != "file":
        return fs.FileInfo(path, fs.FileType.Directory)
    return fs.FileInfo(path, fs.FileType.File, size=found["size"], mtime=found.get("mtime"))


def _cause_of_absence(error: FileNotFoundError) -> Exception | None:
    """Return what a web server answered that fails: fsspec says of it that there is no such file. None if so it is."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (404, 410):
        return None
    return cause if isinstance(cause, OSError | ClientError) else None


def join(base: str, *parts: str) -> str:
    """Join path parts to a path or URI with forward slashes.

    Args:
        base: Path or URI of a folder.
        *parts: Names below it.
    """
    return "/".join([base.rstrip("/"), *parts])


def folder_of(path: str) -> str:
    """Return the folder of a file.

    Args:
        path: Path or URI of the file.
    """
    return absolute_uri(path).rpartition("/")[0]


def expand_shards(pattern: str, source: str) -> list[str]:
    """Return the shards a pattern names, sorted within each glob, without opening them.

    Args:
        pattern: Paths or URIs with braces ("train-{000000..000099}.tar") and globs in the file name ("*.tar").
        source: Name of the source, for the error.

    Returns:
        Absolute paths or URIs, in the order written; a shard named twice appears twice.

    Raises:
        ShardError: Braces are not closed, a glob matches nothing, or its folder does not exist.
    """
    shards: list[str] = []
    for path in _expand_braces(pattern, source):
        uri = absolute_uri(path)
        folder, _, name = uri.rpartition("/")
        if not any(mark in name for mark in "*?["):
            shards.append(uri)
            continue
        filesystem, inner = open_storage(folder)
        entries = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
        found = sorted(entry.base_name for entry in entries if fnmatch.fnmatch(entry.base_name, name))
        if not found:
            raise ShardError(
                f"source '{source}': no file matches {uri}; write or copy the shards there first"
            )
        shards.extend(join(folder, match) for match in found)
    return shards


def _expand_braces(pattern: str, source: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise ShardError(f"source '{source}': shards is '{pattern}'; close every brace it opens") from error


def write_text(uri: str, content: str) -> None:
    """Write a small file as a whole: beside first, then renamed.

    Args:
        uri: Path or URI; its folder is made if missing.
        content: What the file holds afterwards, as UTF-8.

    Raises:
        OSError: The storage refuses.
    """
    write_bytes(uri, content.encode())


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file as a whole: beside first, then renamed.

    Args:
        uri: Path or URI; its folder is made if missing.
        data: What the file holds afterwards.

    Raises:
        OSError: The storage refuses.
    """
    filesystem, path = open_storage(uri)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(f"{path}.partial") as stream:
        stream.write(data)
    filesystem.move(f"{path}.partial", path)


def read_text(uri: str) -> str | None:
    """Return the content of a small UTF-8 file, or None if there is no such file.

    Args:
        uri: Path or URI.
    """
    filesystem, path = open_storage(uri)
    if filesystem.get_file_info(path).type is not fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read()).decode()


def copy_file(local: str, uri: str) -> None:
    """Copy a local file to a path or URI, as a whole: beside first, then renamed.

    Args:
        local: Path of the file.
        uri: Path or URI of the copy.
    """
    with open(local, "rb") as source:
        write_bytes(uri, source.read())


def write_chunks(uri: str, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a large file piece by piece; when it returns, the file is on the disk, or in the store.

    Args:
        uri: Path or URI; its folder is made if missing.
        chunks: What the file holds afterwards. None of them is copied.

    Raises:
        OSError: The storage refuses, as a disk that is full does; nothing is left of the file then.
    """
    filesystem, path = open_storage(uri)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(path) as stream:
            for chunk in chunks:
                stream.write(chunk)
        if isinstance(filesystem, fs.LocalFileSystem):
            # Some file systems say only now that they have no room.
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        delete(uri)
        raise


def list_folder(uri: str) -> dict[str, int | None]:
    """Return what lies in a folder by name: the size of a file in bytes, None for a folder.

    Args:
        uri: Path or URI; nothing lies in a folder that is not there.
    """
    filesystem, path = open_storage(uri)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {entry.base_name: entry.size if entry.type is fs.FileType.File else None for entry in entries}


def delete(uri: str) -> None:
    """Delete a file, or a folder with all that is in it, if it is there.

    Args:
        uri: Path or URI.

    Raises:
        OSError: The storage refuses.
    """
    filesystem, path = open_storage(uri)
    kind = filesystem.get_file_info(path).type
    if kind is fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind is not fs.FileType.NotFound:
        filesystem.delete_file(path)


def rename(uri: str, name: str) -> None:
    """Give a file another name in the same folder.

    Args:
        uri: Path or URI of the file.
        name: Its new name.

    Raises:
        OSError: The storage refuses.
    """
    filesystem, path = open_storage(uri)
    filesystem.move(path, join(path.rpartition("/")[0], name))


def reason_of(error: Exception) -> str:
    """Say in a few words what a storage complains about.

    Args:
        error: What it raised.
    """
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else (str(error) or type(error).__name__).splitlines()[0]


def check_writable(folder: str, option: str) -> None:
    """Make sure that a folder exists and files can be written into it.

    Args:
        folder: Path or URI.
        option: Name of the option it came from, for the error.

    Raises:
        UserError: It cannot be made or written.
    """
    probe = join(folder, f".writable-{os.getpid()}")
    try:
        write_text(probe, "")
        delete(probe)
    except STORAGE_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{option} is '{folder}', which cannot be written ({reason}); choose another folder"
        ) from error
