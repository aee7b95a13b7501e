"""A cluster of several raylets on this machine, of which parts are killed while a training runs on it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from ray.cluster_utils import Cluster

Fault = Literal["worker", "node", "driver"]

_KILLED_AS_WORKER = ("RayTrainWorker", "ReadUnit", "SplitCoordinator")
"""What a process's title holds: a rank, a task that reads, and what hands units to the ranks."""


class FaultyCluster:
    """A head that has the driver and the readers, and nodes with one GPU each, as Ray counts them, for a worker each.

    Args:
        nodes: Number of nodes beside the head.
    """

    def __init__(self, nodes: int) -> None:
        head = {"num_cpus": 4, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()
        self.environment = {
            # The token of a Ray that this process started before is in its environment, and is the cluster's as well.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("RAY_") or "AUTH" in name
            },
            "RAY_ADDRESS": self._cluster.address,
        }

    def add_node(self) -> None:
        """Start a node and wait until the cluster has it."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1))

    def remove_node(self, dice: np.random.Generator) -> None:
        """Kill a node that is not the head, with all that runs on it."""
        self._cluster.remove_node(self._nodes.pop(dice.integers(len(self._nodes))), allow_graceful=False)

    def kill_worker(self, dice: np.random.Generator) -> str:
        """Kill one process of the training; return what it was, or nothing if there is none."""
        found = sorted(self._workers(), key=lambda process: process.pid)
        if not found:
            return ""
        victim = found[dice.integers(len(found))]
        try:
            title = victim.cmdline()[0]
            victim.kill()
        except (psutil.NoSuchProcess, IndexError):
            return ""
        return title

    def announce_end_of_a_node(self, seconds: int) -> None:
        """Tell Ray that the oldest node beside the head will be taken away, as Kubernetes' grace period does."""
        options = {
            "address": self._cluster.address,
            "node-id": self._nodes[0].node_id,
            "reason": "DRAIN_NODE_REASON_PREEMPTION",
            "reason-message": "spot machine",
            "deadline-remaining-seconds": seconds,
        }
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "drain-node", *(f"--{name}={value}" for name, value in options.items())]
        subprocess.run(command, check=True, capture_output=True)

    def remove_announced_node(self) -> None:
        """Kill the oldest node beside the head."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def _workers(self) -> Iterator[psutil.Process]:
        for node in self._cluster.list_all_nodes():
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                if any(name in title for name in _KILLED_AS_WORKER):
                    yield process

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextmanager
def faulty_cluster(nodes: int) -> Iterator[FaultyCluster]:
    """Start a cluster and end it."""
    cluster = FaultyCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.close()
