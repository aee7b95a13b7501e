"""Shards that a source names: patterns with braces and globs, several joined by `::`, or a file that lists them.

`::` and braces are WebDataset's. A list, `@FILE`, is also the place for signed addresses. They grant access, so they
must not be options, which are written to config.yaml, MLflow and logs.
"""

import fnmatch
import os
import re
import socket
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import braceexpand
from pyarrow import fs

from pipelines.errors import ShardError
from pipelines.storage.files import absolute_uri, folder_of, join, open_storage, read_text
from pipelines.storage.retry import is_local, with_retries
from pipelines.storage.signatures import hide_signatures
from pipelines.storage.web_file import is_web

_LISTING_SECONDS = 60.0
"""Retries of a glob on failing storage. It is read at the start, when somebody still watches."""

_CHAINED = {"simplecache", "filecache", "blockcache", "cached", "zip", "tar", "dir", "reference"}
"""What fsspec, but not WebDataset, joins to an address by `::`."""

_NO_PATH = re.compile(r"(pipe|demo|s3|s3a|s3n|gs|gcs|hdfs|hf|http|https|file|az|abfs|oci|ais|ftp):(?!//)")
"""Beginnings that are meant as an address, but are none of those that can be read."""


def expand_shards(pattern: str, source: str) -> list[str]:
    """Return the shards that a pattern names, without opening them.

    The order decides the sample numbers, so it is deterministic: as lists, `::` and braces have them, sorted within
    each glob.

    Args:
        pattern: Path or URI with braces ("train-{000000..000099}.tar") and globs in the file name ("*.tar"); several of
            them, joined by `::`; or `@FILE`, a text file with one of them per line. Lines that are empty or begin with
            `#` are skipped. A relative path in a file is relative to the file's folder.
        source: Name of the source, for errors.

    Returns:
        Absolute paths or URIs. A shard named twice appears twice.

    Raises:
        ShardError: A brace is not closed, a glob matches nothing, a list cannot be read or is empty, or an address is
            of a kind that cannot be read.
    """
    shards: list[str] = []
    for part in _parts(pattern, source):
        for path in _expand_braces(part, source):
            shards.extend(_matches(path, source))
    return shards


def check_hosts(shards: Iterable[str], source: str) -> None:
    """Check that web servers have the names that shards give them, so that a wrong one is not retried for minutes.

    A name service that does not answer may do so later, and names may be for a proxy to resolve.

    Args:
        shards: Paths or URIs.
        source: Name of the source, for errors.

    Raises:
        ShardError: There is no such name.
    """
    for address in sorted({uri.partition("?")[0].rpartition("/")[0] for uri in shards if is_web(uri)}):
        url = urlsplit(address)
        if url.hostname is None or (url.scheme in getproxies() and not proxy_bypass(url.netloc)):
            continue
        try:
            socket.getaddrinfo(url.hostname, None)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise ShardError(
                    f"source '{source}': there is no server called {url.hostname} ({error.strerror}); correct the "
                    "address of the shards, or start again when the name is known"
                ) from error


def _parts(pattern: str, source: str) -> Iterator[str]:
    """Yield the patterns of a list, or those that `::` joins.

    Raises:
        ShardError: One of them cannot be an address.
    """
    if pattern.startswith("@"):
        yield from _listed(pattern.removeprefix("@"), source)
        return
    parts = pattern.split("::")
    for part in parts:
        if _NO_PATH.match(part) or part in _CHAINED:
            raise ShardError(
                f"source '{source}': shards is '{hide_signatures(pattern)}', and '{hide_signatures(part)}' is not an "
                "address that can be read; use a path, s3://..., gs://... or https://..., join several by ::, or name "
                "a file that lists them by @FILE"
            )
        yield part


def _listed(file: str, source: str) -> Iterator[str]:
    """Yield the lines of a list of shards.

    Raises:
        ShardError: The list is missing, not UTF-8, or empty.
    """
    uri = absolute_uri(file)
    try:
        text = with_retries(lambda: read_text(uri, retry_seconds=0), f"list {uri}", uri, _LISTING_SECONDS)
    except UnicodeDecodeError as error:
        raise ShardError(f"source '{source}': {uri} is not UTF-8 text; list one shard per line") from error
    lines = [line.strip() for line in (text or "").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        found = "does not exist" if text is None else "names no shard"
        raise ShardError(f"source '{source}': {uri} {found}; write a text file with one shard per line")
    for line in lines:
        if line.startswith("@"):
            raise ShardError(f"source '{source}': {uri} names another list, {line}; list shards only")
        for part in _parts(line, source):
            yield part if "://" in part or part.startswith(("/", "~")) else join(folder_of(uri), part)


def _expand_braces(pattern: str, source: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise ShardError(f"source '{source}': shards is '{pattern}'; close every brace it opens") from error


def _matches(path: str, source: str) -> list[str]:
    """Return the shards that a path or URI without braces names.

    Raises:
        ShardError: A glob matches nothing, or storage fails.
    """
    uri = absolute_uri(path)
    # In a URL, ? begins the query.
    address, query, _ = uri.partition("?") if is_web(uri) else (uri, "", "")
    folder, _, name = address.rpartition("/")
    # A file may be called like a glob.
    if not any(mark in name for mark in "*?[") or (is_local(uri) and os.path.exists(uri)):
        return [uri]
    if query:
        raise ShardError(
            f"source '{source}': {hide_signatures(uri)} has a glob and a query; name the files by braces or in a list"
        )
    filesystem, inner = open_storage(folder)
    entries = with_retries(
        lambda: filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True)),
        f"source '{source}': {folder}",
        folder,
        _LISTING_SECONDS,
    )
    found = sorted(entry.base_name for entry in entries if fnmatch.fnmatch(entry.base_name, name))
    if not found:
        raise ShardError(f"source '{source}': no file matches {uri}; write or copy the shards there first")
    return [join(folder, match) for match in found]
