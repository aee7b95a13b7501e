"""How many trials run at once, so that every one of them can train and read."""

import os
from typing import Any

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perceiver_dist.cluster.capacity import cpus_of, gpus_per_worker
from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.search.study.search_config import SearchRunConfig

TRIAL_MEMORY = 2**30
"""Bytes of the actor in which a trial's driver waits: about what it holds. It takes no CPU, so that it can be on a
head node that has none to give; Ray Tune cannot place an actor that needs nothing."""


def start_ray_for_trials(config: SearchRunConfig) -> None:
    """Connect to a cluster, or start Ray here with CPUs for one trial per `train.num_workers` cores.

    The dashboard is on: Ray Train asks it which trainings are still alive, and frees what those held that are not.

    Args:
        config: The search's configuration.
    """
    cores = os.cpu_count() or 1
    trials = config.search.max_concurrent or max(cores // config.train.max_workers, 1)
    start_ray(trials * cpus_of(config), dashboard=True)


def trials_at_once(config: SearchRunConfig) -> int:
    """Return how many trials may run at once, at least one.

    A trial needs its workers' CPUs and GPUs, and CPUs to read with. Trials that together took every CPU for training
    would wait for data for ever.

    Args:
        config: The search's configuration; Ray is running and has had room for one trial.

    Returns:
        `search.max_concurrent`, or as many as the cluster has room for as it is now; one that has grown has more.
    """
    if config.search.max_concurrent is not None:
        return config.search.max_concurrent
    resources: Any = ray.cluster_resources
    there = resources()
    needed = {"CPU": cpus_of(config), "GPU": config.train.max_workers * gpus_per_worker(config)}
    return max(int(min(there.get(name, 0) // amount for name, amount in needed.items() if amount)), 1)


def keep_data_actors_here() -> None:
    """Have Ray Data make the actors that it never ends on the node of this process.

    It makes them once for a cluster, where data is first read. That would be where the first trial is, and a worker
    node that holds them is not taken away when the search is over.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ray.get(ray.remote(_read_a_row).options(num_cpus=0, scheduling_strategy=here).remote())


def _read_a_row() -> None:
    ray.data.from_items([0]).map(lambda row: row, num_cpus=0).materialize()
