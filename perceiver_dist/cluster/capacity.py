"""Cluster capacity: the CPUs and GPUs that a run needs, and waiting until the cluster has them.

A wait is never silent: the terminal shows what the run waits for, and who has it. A cluster that is too small and adds
no nodes ends the run within a minute, with one line.
"""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from perceiver_dist.cluster.ray_tables import nodes_being_added, reservation_name
from perceiver_dist.cluster.resources import Bundle, text_of, total_of
from perceiver_dist.cluster.room import WaitLine, living_nodes
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError

_MAX_WAIT_SECONDS = 45.0
"""How long a cluster that is too small may take to start adding nodes. Autoscalers act every 5 seconds."""
_POLL_SECONDS = 2.0
"""Time between two checks; short beside the start of a node, and cheap for Ray."""


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


def fewest_workers(config: RunConfig) -> list[Bundle]:
    """Return the resources of the fewest workers with which a run starts. Ray must be running.

    Args:
        config: The run's configuration.
    """
    worker: Bundle = {"CPU": config.train.cpus_per_worker, "GPU": float(gpus_per_worker(config))}
    # Ray rejects bundles without resources, which cpus_per_worker 0 without GPUs would give.
    bundle = {name: amount for name, amount in worker.items() if amount}
    return [bundle] * config.train.min_workers if bundle else []


def wait_for_capacity(config: RunConfig, who: str, report: Callable[[str], None]) -> None:
    """Wait until the cluster has capacity for all workers and read tasks of a run, and make it grow if it can.

    The capacity is reserved as a placement group, which an autoscaler acts on, and released once it is available.

    Args:
        config: The resolved configuration.
        who: Name of the run or search, which others that wait are shown.
        report: Called with each line for the terminal.

    Raises:
        UserError: The cluster is too small, and no node is being added.
    """
    if _might_have_gpus(config) and not gpus_per_worker(config):
        report(
            "training on CPUs, since the cluster has no GPUs now; if it can add some, set train.gpus_per_worker to 1"
        )
    wait_for_room(
        fewest_workers(config) + [{"CPU": 1.0}] * readers_of(config),
        who,
        "training and reading",
        "train.num_workers, train.cpus_per_worker, train.gpus_per_worker or data.tasks",
        report,
    )


def wait_for_room(
    bundles: list[Bundle], who: str, purpose: str, options: str, report: Callable[[str], None]
) -> None:
    """Wait until the cluster has capacity for all bundles at once, and make it grow if it can.

    Args:
        bundles: What is needed.
        who: Who needs it, for others that wait.
        purpose: What it is needed for, for the error.
        options: The options that reduce it, for the error.
        report: Called with each line for the terminal.

    Raises:
        UserError: The cluster is too small, and no node is being added.
    """
    group = placement_group(bundles, strategy="PACK", name=reservation_name(f"{who} (capacity)"))
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
        self._line = WaitLine("waiting for", report)
        self._last_hope = time.monotonic()

    def check(self) -> None:
        """Show what the job waits for.

        Raises:
            UserError: The wait cannot end.
        """
        nodes = living_nodes()
        if nodes_being_added() or fits(self._bundles, nodes):
            self._last_hope = time.monotonic()
        if time.monotonic() - self._last_hope > _MAX_WAIT_SECONDS:
            present = text_of({name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")})
            raise UserError(
                f"the cluster is too small: {self._purpose} need {text_of(total_of(self._bundles))}, it has {present}, "
                f"and no node is being added; let it grow further (max_workers in its YAML), or lower {self._options}"
            )
        self._line.show(self._bundles)


def fits(bundles: list[Bundle], nodes: list[Bundle]) -> bool:
    """Return whether the nodes could hold all bundles if nothing else ran there.

    A necessary condition, not a packing: there is enough of every resource, and for each bundle a large enough node.

    Args:
        bundles: What is needed, each on one node.
        nodes: All resources of each node.
    """
    total = total_of(bundles)
    enough = all(sum(node.get(name, 0) for node in nodes) >= amount for name, amount in total.items())
    return enough and all(
        any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes)
        for bundle in bundles
    )
