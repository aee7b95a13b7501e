"""Connection to Ray: join the cluster that RAY_ADDRESS names, or start Ray on this machine."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import AuthenticationError

from perceiver_dist.cluster.lean_ray import lean_ray
from perceiver_dist.cluster.surroundings import (
    cluster_address,
    forwarded_variables,
    submitting_cluster,
    use_short_temporary_folder,
)
from perceiver_dist.cluster.termination import end_children, end_ray_by_sigkill, own_processes
from perceiver_dist.cluster.worker_template import replace_template
from perceiver_dist.errors import UserError
from perceiver_dist.termination_signals import keep_termination_signals, without_termination_signals

_CONNECT_SECONDS = 10.0
"""Timeout of the reachability check: far above a connection's round trip, far below the minutes that Ray retries."""
_CORES_PER_EXTRA_CPU = 8
"""Between two tasks a reader waits for Ray, an eighth of its time: so many more readers keep all cores busy."""
_ATTEMPTS = 3
"""Ray allows its processes 15 to 30 seconds to start, too little beside other starts on a machine with few cores."""
_LOOPBACK = "127.0.0.1"
"""A Ray node with this address listens on loopback only; with any other address it listens on all interfaces."""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""Options of `ray.init` that keep Ray's log off the terminal, which shows the job's progress."""


class _StartTimeoutError(Exception):
    """Ray did not start within its own limit."""


def start_ray(cpus: int, log: Callable[[str], None]) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray in this process.

    A Ray started here has more CPUs than the machine has cores (`local_cpus`), and as many as needed: Ray's CPUs are
    units of scheduling, and with too few of them no read task would ever run. It listens on loopback only.

    Args:
        cpus: CPUs that are needed.
        log: Shows one line to the user: that Ray did not start in time and is started again.

    Raises:
        UserError: There is no cluster at RAY_ADDRESS, it rejects this process, or Ray does not start: not in time, or
            the machine does not let it.
    """
    # Without this, Ray prints the error of every bad shard beside the one line that the job prints for the first.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if ray.is_initialized():
        return
    # Ray would end the process by SIGTERM with status 15, and without a word.
    with keep_termination_signals():
        address = cluster_address()
        if address:
            _connect(submitting_cluster() or address)
        else:
            _start(cpus, log)


def ray_is_own() -> bool:
    """Return whether this process has started the Ray that it uses."""
    return bool(own_processes())


def local_cpus(cores: int) -> int:
    """Return the CPUs of a Ray that is started on a machine: an eighth more than its cores, rounded up.

    Args:
        cores: Cores of the machine.
    """
    return cores + -(-cores // _CORES_PER_EXTRA_CPU)


def _start(cpus: int, log: Callable[[str], None]) -> None:
    """Start Ray in this process, again if it does not start in time.

    Raises:
        UserError: It does not start: not in time, or the machine does not let it.
    """
    use_short_temporary_folder()
    # It ends a worker by SIGTERM, which workers block (see below), and after this time by SIGKILL.
    os.environ.setdefault("RAY_kill_worker_timeout_milliseconds", "100")
    # A run has some 12 processes however many cores there are. Ray prints a warning at 4 times this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    # Ray's server would keep 4 KB on each of the last 100,000 tasks, which nobody can see without a dashboard.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    # Otherwise Ray replaces the loopback address with the machine's own, so that other machines can join.
    ray_constants.ENABLE_RAY_CLUSTER = False
    cpus = max(local_cpus(os.cpu_count() or 1), cpus)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _start_once(cpus)
            break
        except _StartTimeoutError as error:
            if attempt == _ATTEMPTS:
                raise UserError(
                    f"Ray did not start on this machine in {_ATTEMPTS} attempts, each within its limit of 30 seconds; "
                    "start the job again when the machine is less busy"
                ) from error
            log(f"Ray did not start within its limit of 30 seconds ({attempt} of {_ATTEMPTS}); trying again")
            replace_template()
    end_ray_by_sigkill()


def _start_once(cpus: int) -> None:
    """Start Ray in this process.

    Raises:
        UserError: The machine does not let it start.
        _StartTimeoutError: It did not start in time; none of its processes is left.
    """
    others = psutil.Process().children()
    try:
        with lean_ray(), without_termination_signals():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                _node_ip_address=_LOOPBACK,
                **QUIET,
            )
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Ray cannot start on this machine ({reason}); make room, or set TMPDIR to a folder where files and "
            "sockets can be made"
        ) from error
    except Exception as error:  # Ray raises a plain Exception, so only the message tells.
        if "timed out during startup" not in str(error):
            raise
        end_children(others)
        raise _StartTimeoutError from error


def _connect(address: str) -> None:
    """Connect to a cluster.

    Raises:
        UserError: There is none at this address, or it rejects this process.
    """
    try:
        _check_reachable(address)
        # Ray says what is wrong with the address of a dashboard.
        own = address if "://" in address else services.canonicalize_bootstrap_address_or_die(address)
        ray.init(address=own, runtime_env={"env_vars": forwarded_variables(os.environ, own)}, **QUIET)
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS is '{address}', where no cluster accepts this job ({str(error).splitlines()[0]}); check "
            "the address and the token (RAY_AUTH_MODE, ~/.ray/auth_token), or unset it to start Ray here"
        ) from error


def _check_reachable(address: str) -> None:
    """Open a connection to the cluster's port, since Ray itself would retry for minutes.

    Raises:
        OSError: Nothing accepts the connection.
        ConnectionError: Ray would take any of several clusters.
    """
    gcs_addresses: Any = services.find_gcs_addresses  # Ray's function has no types.
    running = gcs_addresses() if address == "auto" else ()
    if len(running) > 1 and not services.find_bootstrap_address(None):
        raise ConnectionError(f"several run on this machine: {', '.join(sorted(running))}")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def check_is_kept(folder: str, option: str) -> None:
    """Check that a folder outlives the job: Ray deletes its uploaded copy of the working directory afterwards.

    Args:
        folder: Path or URI.
        option: Name of the option with the folder, for the error.

    Raises:
        UserError: The folder is inside the uploaded copy, in which this process runs.
    """
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    uploaded = (job.get("runtime_env") or {}).get("working_dir", "local://")
    # local:// is a folder that the nodes had before the job, which Ray does not delete.
    if not uploaded.startswith("local://") and Path(folder).is_relative_to(Path.cwd()):
        raise UserError(
            f"{option} is '{folder}', in the copy of the working directory that Ray deletes after the job; "
            "set it to a folder that all nodes share, or s3://... or gs://..."
        )
