"""Opening files by path or URI: local folders, S3 and GCS through pyarrow, everything else through fsspec."""

import fnmatch
import os
from functools import lru_cache
from urllib.parse import urlsplit

import braceexpand
import fsspec
from pyarrow import fs

from pipelines.errors import ShardError

_ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "hdfs"}


def absolute_uri(path: str) -> str:
    """Return `path` unchanged if it is a URI, else as an absolute local path."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


@lru_cache(maxsize=64)
def _filesystem_of(scheme: str, host: str) -> fs.FileSystem:
    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme, host=host)))


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path or URI and the path within it.

    Args:
        uri: A local path, or a URI such as s3://bucket/key, gs://bucket/key, https://host/file.

    Returns:
        A pyarrow filesystem, and the path to hand to its methods.
    """
    scheme, host = urlsplit(uri)[:2] if "://" in uri else ("", "")
    if not scheme:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    if scheme in _ARROW_SCHEMES:
        return fs.FileSystem.from_uri(uri)
    return _filesystem_of(scheme, host), uri


def join(base: str, *parts: str) -> str:
    """Join path parts to a path or URI with forward slashes."""
    return "/".join([base.rstrip("/"), *parts])


def expand_shards(pattern: str, source: str) -> list[str]:
    """Return the shards a pattern names, sorted within each glob, without opening them.

    Args:
        pattern: Paths or URIs with braces ("train-{000000..000099}.tar") and globs in the file name ("*.tar").
        source: Name of the source, for the error.

    Returns:
        Absolute paths or URIs, in the order written; a shard named twice appears twice.

    Raises:
        ShardError: A glob matches nothing, or its folder does not exist.
    """
    shards: list[str] = []
    for path in braceexpand.braceexpand(pattern):
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
