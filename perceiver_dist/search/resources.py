"""How many trials run at once, so that every one of them can train and read."""

import os
from typing import Any

import ray
from ray._private import state

from perceiver_dist.errors import UserError
from perceiver_dist.search.config import SearchRunConfig
from perceiver_dist.training.console import cpus_of, start_ray, uses_gpus

TRIAL_CPUS = 0.01
"""Of the actor in which a trial's driver waits. Ray Tune cannot place an actor that needs nothing."""


def start_ray_for_trials(config: SearchRunConfig) -> None:
    """Connect to a cluster, or start Ray here with CPUs for one trial per `train.num_workers` cores.

    The dashboard is on: Ray Train asks it which trainings are still alive, and frees what those held that are not.

    Args:
        config: The search's configuration.
    """
    cores = os.cpu_count() or 1
    trials = config.search.max_concurrent or max(cores // config.train.num_workers, 1)
    start_ray(trials * cpus_of(config) + 1, dashboard=True)


def trials_at_once(config: SearchRunConfig) -> int:
    """Return how many trials may run at once.

    A trial needs its workers' CPUs and GPUs, and CPUs to read with. Trials that together took every CPU for training
    would wait for data for ever. A cluster that can grow counts as grown: the trials that wait make it grow.

    Args:
        config: The search's configuration; Ray is running.

    Raises:
        UserError: The cluster is too small for one trial.
    """
    if config.search.max_concurrent is not None:
        return config.search.max_concurrent
    there = _resources()
    needed = {"CPU": cpus_of(config) + TRIAL_CPUS}
    if uses_gpus(config):
        needed["GPU"] = config.train.num_workers
    for name, amount in needed.items():
        if there.get(name, 0) < amount:
            raise UserError(
                f"a trial needs {amount:g} {name}s for training and reading, the cluster has {there.get(name, 0):g}; "
                "lower train.num_workers, train.cpus_per_worker or data.tasks, take a larger cluster, or set "
                "search.max_concurrent if it grows by itself"
            )
    return int(min(there[name] // amount for name, amount in needed.items()))


def _resources() -> dict[str, float]:
    """Return what the cluster has, or can have after the autoscaler has done what it can."""
    # Ray has no public function for it; its own libraries take this one.
    grown: dict[str, float] = dict(state.state.get_max_resources_from_cluster_config() or {})
    now: Any = ray.cluster_resources
    there = {**grown, **now()}
    return {name: max(amount, grown.get(name, 0)) for name, amount in there.items()}
