"""Ray resources of a search: how many trials run at once, so that each of them can train and read."""

import os
from collections.abc import Callable
from typing import Any

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perceiver_dist.cluster.capacity import cpus_of, gpus_per_worker
from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.search.study.search_config import SearchRunConfig

TRIAL_MEMORY = 2**30
"""Bytes reserved for the actor of a trial, about what it uses. The actor reserves no CPU, since it mostly waits and a
head node may have none; but Ray Tune cannot place an actor without any resources."""


def start_ray_for_trials(config: SearchRunConfig, log: Callable[[str], None]) -> None:
    """Connect to a cluster, or start Ray on this machine with CPUs for one trial per `train.num_workers` cores.

    Args:
        config: Configuration of the search.
        log: Shows one line to the user.
    """
    cores = os.cpu_count() or 1
    trials = config.search.max_concurrent or max(cores // config.train.max_workers, 1)
    start_ray(trials * cpus_of(config), log)


def max_concurrent_trials(config: SearchRunConfig) -> int:
    """Return how many trials may run at the same time, at least one.

    A trial needs CPUs and GPUs for its workers, and CPUs to read data. Trials that together took every CPU for
    training would deadlock, waiting for data.

    Args:
        config: Configuration of the search; Ray is running and has had the resources for one trial.

    Returns:
        `search.max_concurrent`, or as many as the current resources of the cluster allow.
    """
    if config.search.max_concurrent is not None:
        return config.search.max_concurrent
    resources: Any = ray.cluster_resources
    available = resources()
    needed = {"CPU": cpus_of(config), "GPU": config.train.max_workers * gpus_per_worker(config)}
    return max(int(min(available.get(name, 0) // amount for name, amount in needed.items() if amount)), 1)


def keep_data_actors_here() -> None:
    """Make Ray Data create its long-lived actors on the node of this process.

    It creates them once per cluster, where data is first read, and never ends them. That would be the node of the
    first trial, and an autoscaler cannot remove a worker node on which actors run.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ray.get(ray.remote(_read_a_row).options(num_cpus=0, scheduling_strategy=here).remote())


def _read_a_row() -> None:
    ray.data.from_items([0]).map(lambda row: row, num_cpus=0).materialize()
