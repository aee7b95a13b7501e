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
from contextlib import suppress
from pathlib import Path

import psutil

from perceiver_dist.errors import UserError

_LONGEST = 107 - len("/ray/session_2026-11-28_02-16-25_126772_4194304/sockets/plasma_store")
"""Bytes of a temporary folder in which Ray's longest path of a socket still fits."""

_PLACES_OF_LINKS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 # a folder that only this user may enter is made there

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that say where the data is, so that the same address must mean the same file on every node. Credentials
are not among them: Ray shows these variables on its dashboard. Nor are proxies, which differ between machines."""


_SERVER = "--gcs-address="
"""Argument of a raylet with the address of its cluster's server."""


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


def variables_of_cluster(address: str) -> dict[str, str]:
    """Return the variables with which Ray's code in a worker finds the cluster that the worker belongs to.

    Ray Data's search for hanging tasks looks there for the dashboard. Without them it looks on the whole machine: it
    takes the Ray of the last `ray start`, living or not (the file `ray_current_cluster`), and refuses to choose if
    several run.

    Args:
        address: Host and port of the cluster's server.
    """
    # The second one, which the user's shell may have for `ray job submit`, comes before the first.
    return {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": ""}


def submitting_cluster() -> str | None:
    """Return the address of the cluster that runs this process as a submitted job; None if it is no such job.

    `ray job submit` gives its jobs the machine's current cluster as RAY_ADDRESS, the one that was started last there.
    The cluster that has started this process is that of the raylet among its ancestors.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return None
    for ancestor in psutil.Process().parents():
        with suppress(psutil.Error):
            if ancestor.name() == "raylet":
                return next(
                    (text.removeprefix(_SERVER) for text in ancestor.cmdline() if text.startswith(_SERVER)),
                    None,
                )
    return None


def forwarded_variables(environment: Mapping[str, str], cluster: str) -> dict[str, str]:
    """Return the variables that workers on all nodes get: some of this process, and those of their cluster.

    Args:
        environment: This process's environment. Those that the job's runtime environment sets reach all nodes anyway.
        cluster: Host and port of the cluster's server.
    """
    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submitted = (job.get("runtime_env") or {}).get("env_vars") or {}
    own = {name: environment[name] for name in _FORWARDED if environment.get(name)}
    variables = {**own, **variables_of_cluster(cluster)}
    return {name: value for name, value in variables.items() if name not in submitted}


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
