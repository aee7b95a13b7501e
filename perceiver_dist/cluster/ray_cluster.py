"""Ray as a run needs it: connect or start it, say what the run takes of it, and wait until that is there.

A run never waits in silence. A cluster that grows is waited for, and the screen says for what; one that is too small
and adds no nodes ends the run in one line within a minute.
"""

import json
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import AuthenticationError
from ray.util.placement_group import placement_group, remove_placement_group

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError

_MAX_WAIT_SECONDS = 45.0
"""How long a cluster that is too small may do nothing about it; autoscalers look every 5 seconds."""
_CONNECT_SECONDS = 10.0
_SECONDS_BETWEEN_LOOKS = 2.0
_LOOPBACK = "127.0.0.1"
"""A Ray whose node has this address listens on it alone; with any other one it does on all of the machine's."""
_SECONDS_BETWEEN_LINES = 60.0

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""Options of `ray.init` with which the screen belongs to the job."""

Bundle = dict[str, float]
"""Resources that are needed together on one node."""


def readers_of(config: RunConfig) -> int:
    """Return how many CPUs read for a run: one per task of every source, and of one evaluation at a time.

    Args:
        config: The run's configuration.
    """
    return config.data.tasks * (len(config.sources) + 1)


def cpus_of(config: RunConfig) -> int:
    """Return the CPUs with which training and reading make progress together.

    Args:
        config: The run's configuration.
    """
    return math.ceil(config.train.max_workers * config.train.cpus_per_worker) + readers_of(config)


def gpus_per_worker(config: RunConfig) -> int:
    """Return how many GPUs Ray reserves for each worker, 0 or 1; Ray is running.

    Args:
        config: The run's configuration.
    """
    train = config.train
    if train.gpus_per_worker is not None:
        return train.gpus_per_worker
    if train.device == "auto":
        resources: Any = ray.cluster_resources
        return int(resources().get("GPU", 0) > 0)
    return int(train.device == "cuda")


def device_type(config: RunConfig) -> str:
    """Return what workers compute on, cpu or cuda; Ray is running.

    Args:
        config: The run's configuration.
    """
    if config.train.device == "auto":
        return "cuda" if gpus_per_worker(config) else "cpu"
    return config.train.device


def start_ray(cpus: int, dashboard: bool = False) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray in this process.

    A Ray started here has as many CPUs as are needed, even on a machine with fewer cores: they are Ray's units of
    scheduling, and with too few no data would ever be read. It listens on loopback only.

    Args:
        cpus: CPUs that are needed.
        dashboard: Whether to start Ray's dashboard, which also frees what a killed training held.

    Raises:
        UserError: There is no cluster at RAY_ADDRESS, it does not let this process in, or Ray does not start in time.
    """
    # One bad shard is reported in one line; Ray would print those found beside it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _check_reachable(address)
            ray.init(**QUIET)
        except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"RAY_ADDRESS is '{address}', where no cluster lets this job in ({str(error).splitlines()[0]}); check "
                "the address and the token (RAY_AUTH_MODE, ~/.ray/auth_token), or unset it to start Ray here"
            ) from error
        return
    # A run has some 12 processes whatever the number of cores; Ray warns on the screen at 4 times this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    # Else Ray takes the machine's own address in place of the loopback one, for nodes of other machines to join.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cpus),
            include_dashboard=dashboard,
            _node_ip_address=_LOOPBACK,
            **QUIET,
        )
    except Exception as error:  # Ray raises a plain one.
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start on this machine in the 30 seconds that it gives itself; start again when the machine is "
            "less busy"
        ) from error


def _check_reachable(address: str) -> None:
    """Knock where a cluster is said to be; Ray itself would try for minutes.

    Raises:
        OSError: Nobody answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def check_is_kept(folder: str, option: str) -> None:
    """Make sure that a folder does not go with the uploaded copy of a job's folder, in which this process runs.

    Args:
        folder: Path or URI.
        option: Name of the option it came from, for the error.

    Raises:
        UserError: It is in that copy.
    """
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    uploaded = (job.get("runtime_env") or {}).get("working_dir", "local://")
    # A folder that was on the nodes before is not Ray's to delete.
    if not uploaded.startswith("local://") and Path(folder).is_relative_to(Path.cwd()):
        raise UserError(
            f"{option} is '{folder}', in the copy of your folder that each node has and Ray deletes after the job; "
            "set it to a folder that all nodes share, or s3://... or gs://..."
        )


def wait_for_capacity(config: RunConfig, say: Callable[[str], None]) -> None:
    """Wait until the cluster has room for all workers and readers of a run at once, and make it grow if it can.

    The room is reserved, which is what an autoscaler acts on, and given back when it is there.

    Args:
        config: The resolved configuration.
        say: Shows one line.

    Raises:
        UserError: The cluster is too small, and no node is being added.
    """
    gpus = gpus_per_worker(config)
    if _might_have_gpus(config) and not gpus:
        say(
            "training on CPUs, since the cluster has no GPUs now; if it can add some, set train.gpus_per_worker to 1"
        )
    workers: Bundle = {"CPU": config.train.cpus_per_worker, "GPU": float(gpus)}
    bundles = [{name: amount for name, amount in workers.items() if amount}] * config.train.min_workers
    wait_for_room(
        [bundle for bundle in bundles if bundle] + [{"CPU": 1.0}] * readers_of(config),
        "training and reading",
        "train.num_workers, train.cpus_per_worker, train.gpus_per_worker or data.tasks",
        say,
    )


def wait_for_room(bundles: list[Bundle], purpose: str, options: str, say: Callable[[str], None]) -> None:
    """Wait until the cluster has room for all bundles at once, and make it grow if it can.

    Args:
        bundles: What is needed.
        purpose: What it is needed for, for the error.
        options: Which options make it less, for the error.
        say: Shows one line.

    Raises:
        UserError: The cluster is too small, and no node is being added.
    """
    group = placement_group(bundles, strategy="PACK")
    waiting = _CapacityWait(bundles, purpose, options, say)
    try:
        while not group.wait(timeout_seconds=_SECONDS_BETWEEN_LOOKS):
            waiting.look()
    finally:
        remove_placement_group(group)


def _might_have_gpus(config: RunConfig) -> bool:
    """Return whether nobody decided against GPUs, on a cluster that may grow; Ray does not tell by what."""
    decided = config.train.device != "auto" or config.train.gpus_per_worker is not None
    return "RAY_ADDRESS" in os.environ and not decided


class _CapacityWait:
    """Tells waiting for other work or for nodes that are coming from waiting for ever."""

    def __init__(self, bundles: list[Bundle], purpose: str, options: str, say: Callable[[str], None]) -> None:
        self._bundles = bundles
        self._purpose = purpose
        self._options = options
        self._say = say
        self._hopeful_at = time.monotonic()
        self._said: tuple[str, float] = ("", float("-inf"))

    def look(self) -> None:
        """Say what is waited for.

        Raises:
            UserError: It will not come.
        """
        all_nodes: Any = ray.nodes  # Ray leaves it without types
        nodes = [node["Resources"] for node in all_nodes() if node["Alive"]]
        coming = nodes_being_added()
        if coming or fits(self._bundles, nodes):
            self._hopeful_at = time.monotonic()
        there = _text({name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")})
        needed = _text(_total(self._bundles))
        if time.monotonic() - self._hopeful_at > _MAX_WAIT_SECONDS:
            raise UserError(
                f"the cluster is too small: {needed} are needed for {self._purpose}, it has {there}, and no node "
                f"is being added; let it grow further (max_workers in its YAML), or lower {self._options}"
            )
        why = f"{coming} nodes are starting" if coming else "other work holds them, or the cluster is to grow"
        self._tell(f"waiting for {needed}; the cluster has {there}: {why}")

    def _tell(self, text: str) -> None:
        before, at = self._said
        if text != before or time.monotonic() - at > _SECONDS_BETWEEN_LINES:
            self._said = (text, time.monotonic())
            self._say(text)


def fits(bundles: list[Bundle], nodes: list[Bundle]) -> bool:
    """Return whether nodes could hold all bundles if nothing else ran there.

    It is what a first look tells: that there is enough of everything, and a node that is large enough for each.

    Args:
        bundles: What is needed, each on one node.
        nodes: All resources of each node.
    """
    total = _total(bundles)
    enough = all(sum(node.get(name, 0) for node in nodes) >= amount for name, amount in total.items())
    return enough and all(
        any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes)
        for bundle in bundles
    )


def nodes_being_added() -> int:
    """Return how many nodes the autoscaler has asked for that have not joined yet; 0 without an autoscaler."""
    # Ray has no public function for it; these are what its command `ray status` reads.
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    return sum((report.get("pending_launches") or {}).values()) + len(report.get("pending_nodes") or [])


def _total(bundles: list[Bundle]) -> Bundle:
    names = {name for bundle in bundles for name in bundle}
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in names}


def _text(resources: Bundle) -> str:
    """Write resources as "4 CPUs and 2 GPUs"."""
    return " and ".join(f"{resources[name]:g} {name}s" for name in ("CPU", "GPU") if name in resources)
