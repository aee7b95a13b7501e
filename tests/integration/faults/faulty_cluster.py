"""A Ray cluster of several raylets on one machine, whose workers and nodes can be killed."""

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
"""Parts of process titles: a rank, a read task, and the actor that distributes units to the ranks."""


class FaultyCluster:
    """A head for the driver and read tasks, and nodes with one logical GPU each, so that each gets one worker.

    Args:
        nodes: Number of nodes besides the head.
    """

    def __init__(self, nodes: int) -> None:
        head = {"num_cpus": 4, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()
        self.environment = {
            # A Ray that this process started earlier has put its token into the environment; this cluster uses it too.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("RAY_") or "AUTH" in name
            },
            "RAY_ADDRESS": self._cluster.address,
        }

    def add_node(self) -> None:
        """Start a node and wait until it has joined."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1))

    def kill_node(self, random: np.random.Generator) -> None:
        """Kill a random node other than the head, with all its processes."""
        self._cluster.remove_node(self._nodes.pop(random.integers(len(self._nodes))), allow_graceful=False)

    def kill_worker(self, random: np.random.Generator) -> str:
        """Kill a random training process and return its title; return "" if there is none."""
        found = sorted(self.workers(), key=lambda process: process.pid)
        if not found:
            return ""
        victim = found[random.integers(len(found))]
        try:
            title = victim.cmdline()[0]
            victim.kill()
        except (psutil.NoSuchProcess, IndexError):
            return ""
        return title

    def announce_preemption(self, seconds: int) -> None:
        """Drain the oldest node besides the head with a deadline, as a cloud does before it takes a spot machine."""
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

    def kill_preempted_node(self) -> None:
        """Kill the oldest node besides the head."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def workers(self) -> Iterator[psutil.Process]:
        """Yield the ranks, read tasks and actors that distribute units."""
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
        """Stop all nodes."""
        self._cluster.shutdown()


@contextmanager
def faulty_cluster(nodes: int) -> Iterator[FaultyCluster]:
    """Start a cluster, and stop it when the context ends."""
    cluster = FaultyCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.close()
