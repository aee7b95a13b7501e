"""Environment of Ray: the cluster's address, the folder for its sockets, variables for other nodes.

A socket's path may have 107 bytes on Linux, and Ray appends 68 to TMPDIR. Batch systems set it to longer ones. Then
TMPDIR becomes a short link to the same folder, for this process and all that it starts, some with sockets of their own.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from perceiver_dist.errors import UserError

_LONGEST = 107 - len("/ray/session_2026-11-28_02-16-25_126772_4194304/sockets/plasma_store")
"""Bytes of a temporary folder in which Ray's longest path of a socket still fits."""

_PLACES_OF_LINKS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 # a folder that only this user may enter is made there

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that say where the data is, so that the same address must mean the same file on every node. Credentials
are not among them: Ray shows these variables on its dashboard. Nor are proxies, which differ between machines."""


def cluster_address() -> str | None:
    """Return RAY_ADDRESS; None if it asks for a Ray on this machine, as an empty one and `local` do.

    Raises:
        UserError: It is one of Ray's client, which neither Ray Data nor Ray Train supports.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS is '{address}', of Ray's client, through which Ray Data and Ray Train do not run; submit the "
            "job with `ray job submit`, or run it on a node of the cluster with RAY_ADDRESS=auto"
        )
    return None if address in ("", "local") else address


def forwarded_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this process that workers on other nodes get.

    Args:
        environment: This process's environment. Those that the job's runtime environment sets reach all nodes anyway.
    """
    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submitted = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: environment[name] for name in _FORWARDED if environment.get(name) and name not in submitted}


def use_short_temporary_folder() -> None:
    """Replace RAY_TMPDIR and TMPDIR by short links to them if they are too long for the paths of sockets.

    Raises:
        UserError: One of them cannot be written, or there is no place for a link.
    """
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(variable)
        if folder:
            _check_usable(variable, folder)
            if len(os.fsencode(folder)) > _LONGEST:
                os.environ[variable] = _short_link(variable, folder)
                tempfile.tempdir = None  # Python remembers what it was


def _check_usable(variable: str, folder: str) -> None:
    """Check that files can be made in a temporary folder. Python would silently use another one, and Ray end.

    Raises:
        UserError: They cannot.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{variable} is '{folder}', where no file can be made ({error.strerror}); set it to a folder that can be "
            "written, or unset it"
        ) from error


def _short_link(variable: str, folder: str) -> str:
    """Return a short path of a folder, which lasts until this process ends.

    Raises:
        UserError: There is no place for it.
    """
    for place in _PLACES_OF_LINKS:
        try:
            own = tempfile.mkdtemp(prefix="pd", dir=place)
        except OSError:
            continue
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        link = Path(own) / "t"
        link.symlink_to(Path(folder).absolute())
        return str(link)
    raise UserError(
        f"{variable} is '{folder}', of {len(os.fsencode(folder))} bytes, too long for the paths of Ray's sockets, and "
        f"no link to it can be made in {', '.join(_PLACES_OF_LINKS)}; set {variable} to a path of at most {_LONGEST} "
        "bytes"
    )
