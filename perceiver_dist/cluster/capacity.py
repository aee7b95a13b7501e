"""Cluster capacity: the CPUs and GPUs that a run needs, and waiting until the cluster has them.

A wait is never silent. While an autoscaling cluster grows, the terminal shows what the run waits for. A cluster that is
too small and adds no nodes ends the run within a minute, with one line.
"""

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError

_MAX_WAIT_SECONDS = 45.0
"""How long a cluster that is too small may take to start adding nodes. Autoscalers act every 5 seconds."""
_POLL_SECONDS = 2.0
"""Time between two checks; short beside the start of a node, and cheap for Ray."""
_REPEAT_SECONDS = 60.0
"""Time after which an unchanged wait message is shown again, so that a log shows that the job is alive."""

Bundle = dict[str, float]
"""Resources that are needed together on one node."""


def readers_of(config: RunConfig) -> int:
    """Return how many CPUs a run needs for reading: those of `data.tasks`, at least one, and one for an evaluation.

    Args:
        config: The run's configuration.
    """
    return (1 if config.data.tasks == "auto" else config.data.tasks) + 1


def cpus_of(config: RunConfig) -> int:
    """Return the CPUs with which training and reading make progress at the same time.

    Args:
        config: The run's configuration.
    """
    return math.ceil(config.train.max_workers * config.train.cpus_per_worker) + readers_of(config)


def gpus_per_worker(config: RunConfig) -> int:
    """Return how many GPUs Ray reserves for each worker, 0 or 1. Ray must be running.

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
    """Return the device that workers train on, cpu or cuda. Ray must be running.

    Args:
        config: The run's configuration.
    """
    if config.train.device == "auto":
        return "cuda" if gpus_per_worker(config) else "cpu"
    return config.train.device


def wait_for_capacity(config: RunConfig, report: Callable[[str], None]) -> None:
    """Wait until the cluster has capacity for all workers and read tasks of a run, and make it grow if it can.

    The capacity is reserved as a placement group, which an autoscaler acts on, and released once it is available.

    Args:
        config: The resolved configuration.
        report: Called with each line for the terminal.

    Raises:
        UserError: The cluster is too small, and no node is being added.
    """
    gpus = gpus_per_worker(config)
    if _might_have_gpus(config) and not gpus:
        report(
            "training on CPUs, since the cluster has no GPUs now; if it can add some, set train.gpus_per_worker to 1"
        )
    workers: Bundle = {"CPU": config.train.cpus_per_worker, "GPU": float(gpus)}
    # Ray rejects bundles without resources, which cpus_per_worker 0 without GPUs would give.
    bundles = [{name: amount for name, amount in workers.items() if amount}] * config.train.min_workers
    wait_for_room(
        [bundle for bundle in bundles if bundle] + [{"CPU": 1.0}] * readers_of(config),
        "training and reading",
        "train.num_workers, train.cpus_per_worker, train.gpus_per_worker or data.tasks",
        report,
    )


def wait_for_room(bundles: list[Bundle], purpose: str, options: str, report: Callable[[str], None]) -> None:
    """Wait until the cluster has capacity for all bundles at once, and make it grow if it can.

    Args:
        bundles: What is needed.
        purpose: What it is needed for, for the error.
        options: The options that reduce it, for the error.
        report: Called with each line for the terminal.

    Raises:
        UserError: The cluster is too small, and no node is being added.
    """
    group = placement_group(bundles, strategy="PACK")
    waiting = _CapacityWait(bundles, purpose, options, report)
    try:
        while not group.wait(timeout_seconds=_POLL_SECONDS):
            waiting.check()
    finally:
        remove_placement_group(group)


def _might_have_gpus(config: RunConfig) -> bool:
    """Return whether a cluster may add GPUs later and no option rules them out. Ray does not tell what it can add."""
    decided = config.train.device != "auto" or config.train.gpus_per_worker is not None
    return "RAY_ADDRESS" in os.environ and not decided


class _CapacityWait:
    """A wait for capacity, which tells one that can end from one that cannot."""

    def __init__(
        self, bundles: list[Bundle], purpose: str, options: str, report: Callable[[str], None]
    ) -> None:
        self._bundles = bundles
        self._purpose = purpose
        self._options = options
        self._report = report
        self._last_hope = time.monotonic()
        self._shown: tuple[str, float] = ("", float("-inf"))

    def check(self) -> None:
        """Show what the job waits for.

        Raises:
            UserError: The wait cannot end.
        """
        all_nodes: Any = ray.nodes  # Ray's function has no types.
        nodes = [node["Resources"] for node in all_nodes() if node["Alive"]]
        coming = nodes_being_added()
        if coming or fits(self._bundles, nodes):
            self._last_hope = time.monotonic()
        present = _text({name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")})
        needed = _text(_total(self._bundles))
        if time.monotonic() - self._last_hope > _MAX_WAIT_SECONDS:
            raise UserError(
                f"the cluster is too small: {self._purpose} need {needed}, it has {present}, and no node is being "
                f"added; let it grow further (max_workers in its YAML), or lower {self._options}"
            )
        why = (
            f"{coming} nodes are starting"
            if coming
            else "other jobs use them, or the cluster has yet to grow"
        )
        self._show(f"waiting for {needed}; the cluster has {present}: {why}")

    def _show(self, text: str) -> None:
        shown, at = self._shown
        if text != shown or time.monotonic() - at > _REPEAT_SECONDS:
            self._shown = (text, time.monotonic())
            self._report(text)


def fits(bundles: list[Bundle], nodes: list[Bundle]) -> bool:
    """Return whether the nodes could hold all bundles if nothing else ran there.

    A necessary condition, not a packing: there is enough of every resource, and for each bundle a large enough node.

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
    """Return how many nodes the autoscaler has requested that have not joined yet; 0 without an autoscaler."""
    # Ray 2.60 has no public function for this. `ray status` reads the same sources.
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
    """Return resources as text, such as "4 CPUs and 2 GPUs"."""
    return " and ".join(f"{resources[name]:g} {name}s" for name in ("CPU", "GPU") if name in resources)
