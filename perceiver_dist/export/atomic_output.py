"""Atomic output of files and folders: written next to their destination, then renamed.

Object stores such as S3 cannot rename folders. There, files are copied one by one and the weights last, since a folder
without weights is not accepted as a model.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow.fs import FileType

from perceiver_dist.checkpoint.stored_model import WEIGHTS
from perceiver_dist.errors import UserError
from pipelines.storage.files import (
    absolute_uri,
    copy_file,
    file_info,
    join,
    list_folder,
    open_storage,
)
from pipelines.storage.retry import is_local
from pipelines.storage.write_check import check_writable


@contextmanager
def atomic_folder(out: str) -> Iterator[Path]:
    """Context manager for a local folder that is moved to `out` if the block succeeds.

    Args:
        out: Path or URI of a new or empty folder.

    Yields:
        The local folder, empty.

    Raises:
        UserError: `out` is a file or not empty, or cannot be written.
    """
    out = absolute_uri(out.rstrip("/"))
    kind = file_info(out).type
    if kind is FileType.File or (kind is FileType.Directory and list_folder(out)):
        raise UserError(f"--out is '{out}', which already exists; choose a new folder")
    with _temporary_sibling(out) as temporary:
        temporary.mkdir()
        yield temporary
        if is_local(out):
            temporary.rename(_local_path(out))
            return
        files = [file for file in temporary.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == WEIGHTS):  # False sorts first
            copy_file(str(file), join(out, *file.relative_to(temporary).parts))


@contextmanager
def atomic_file(out: str) -> Iterator[Path]:
    """Context manager for a local file that is moved to `out` if the block succeeds.

    Args:
        out: Path or URI of a new file.

    Yields:
        Path that the block writes the file to.

    Raises:
        UserError: `out` exists already, or cannot be written.
    """
    out = absolute_uri(out)
    if file_info(out).type is not FileType.NotFound:
        raise UserError(f"--out is '{out}', which already exists; choose a new file")
    with _temporary_sibling(out) as temporary:
        yield temporary
        if is_local(out):
            temporary.rename(_local_path(out))
        else:
            copy_file(str(temporary), out)


@contextmanager
def _temporary_sibling(out: str) -> Iterator[Path]:
    """Context manager for a local path with the name of `out`, on the same file system, so that a rename is atomic."""
    folder, _, name = out.rpartition("/")
    check_writable(folder, "--out")
    # Hidden, so that the remains of a killed export are not mistaken for a result.
    with tempfile.TemporaryDirectory(
        prefix=f".{name}-", dir=_local_path(folder) if is_local(out) else None
    ) as scratch:
        yield Path(scratch) / name


def _local_path(uri: str) -> str:
    return open_storage(uri)[1]
