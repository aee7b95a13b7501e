"""Results that are at their place whole or not at all: made beside it, then renamed.

In a store such as S3, where folders cannot be renamed, files are put there one by one and the weights last: without
them a folder is no model.
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
    check_writable,
    copy_file,
    file_info,
    is_local,
    join,
    list_folder,
    open_storage,
)


@contextmanager
def atomic_folder(out: str) -> Iterator[Path]:
    """Give a local folder that becomes `out` when the block ends without an error.

    Args:
        out: Path or URI of a folder that is empty or not there.

    Yields:
        The local folder, empty.

    Raises:
        UserError: There is something at the place already, or it cannot be written.
    """
    out = absolute_uri(out.rstrip("/"))
    kind = file_info(out).type
    if kind is FileType.File or (kind is FileType.Directory and list_folder(out)):
        raise UserError(f"--out is '{out}', where there is something already; name a new folder")
    with _beside(out) as made:
        made.mkdir()
        yield made
        if is_local(out):
            made.rename(_local(out))
            return
        files = [file for file in made.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == WEIGHTS):
            copy_file(str(file), join(out, *file.relative_to(made).parts))


@contextmanager
def atomic_file(out: str) -> Iterator[Path]:
    """Give the path of a local file that becomes `out` when the block ends without an error.

    Args:
        out: Path or URI of a file that is not there.

    Yields:
        The path, at which the block writes the file.

    Raises:
        UserError: There is something at the place already, or it cannot be written.
    """
    out = absolute_uri(out)
    if file_info(out).type is not FileType.NotFound:
        raise UserError(f"--out is '{out}', where there is something already; name a new file")
    with _beside(out) as made:
        yield made
        if is_local(out):
            made.rename(_local(out))
        else:
            copy_file(str(made), out)


@contextmanager
def _beside(out: str) -> Iterator[Path]:
    """Give a local path with the name of `out`: on the same disk, so that renaming moves nothing."""
    folder, _, name = out.rpartition("/")
    check_writable(folder, "--out")
    with tempfile.TemporaryDirectory(
        prefix=f".{name}-", dir=_local(folder) if is_local(out) else None
    ) as scratch:
        yield Path(scratch) / name


def _local(uri: str) -> str:
    return open_storage(uri)[1]
