"""Check that a folder can be written, before anything starts."""

import os

from perceiver_dist.errors import UserError
from pipelines.storage.files import STORAGE_ERRORS, delete, join, write_text
from pipelines.storage.retry import is_answered, is_local

_PROBE_BYTES = 4096
"""What a check writes: a block of most file systems."""

_RETRY_SECONDS_AT_START = 30.0
"""Seconds for which a check retries while somebody waits for it."""


def check_writable(folder: str, option: str) -> None:
    """Check that files can be written to a folder, by writing one. A missing folder is created.

    Args:
        folder: Path or URI.
        option: Name of the option that holds the folder, for the error.

    Raises:
        UserError: The folder cannot be created or written.
    """
    probe = join(folder, f".writable-{os.getpid()}")
    try:
        _write_probe(probe)
    except (NotImplementedError, UserError, *STORAGE_ERRORS) as error:
        # fsspec leaves out what a kind of storage cannot do.
        reason = str(error).splitlines()[0] if str(error) else "storage of this kind is read only"
        remedy = "" if is_local(folder) else "check the address, the endpoint and the access rights, or "
        raise UserError(
            f"{option} is '{folder}', which cannot be written ({reason}); {remedy}choose another folder"
        ) from error


def _write_probe(probe: str) -> None:
    # A file without content fits on a full disk.
    try:
        write_text(probe, " " * _PROBE_BYTES, retry_seconds=0)
    except STORAGE_ERRORS as error:
        # A wrong address is noticed at once, but a storage that answers is given some time.
        if not is_answered(error):
            raise
        write_text(probe, " " * _PROBE_BYTES, _RETRY_SECONDS_AT_START)
    delete(probe, _RETRY_SECONDS_AT_START)
