"""Resources of distributed scoring: a pool of actors with the model, and the read tasks that feed it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray

from perceiver_dist.cluster.capacity import wait_for_room
from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.cluster.resources import Bundle
from perceiver_dist.errors import UserError
from perceiver_dist.inference.inference_options import Device


@dataclass(frozen=True)
class ScoringPool:
    """Sizes of the pool of actors and of the read tasks.

    Attributes:
        device: Device of the model, cpu or cuda.
        actors: Copies of the model, each on one CPU or one GPU.
        readers: Read tasks that run at a time, each on one CPU.
    """

    device: Literal["cpu", "cuda"]
    actors: int
    readers: int

    @property
    def bundle(self) -> Bundle:
        """Resources of one actor."""
        return {"GPU": 1.0} if self.device == "cuda" else {"CPU": 1.0}


def allocate_pool(
    device: Device, actors: int | None, readers: int | None, log: Callable[[str], None]
) -> ScoringPool:
    """Start Ray or connect to the cluster, size the pool, and wait until the cluster has room for it.

    Args:
        device: Device of the model; auto uses GPUs if the cluster has any.
        actors: Copies of the model; None for one per free GPU or, on CPUs, half of the free CPUs (all that `readers`
            leaves, if that is given).
        readers: Read tasks that run at a time; None for one per remaining free CPU.
        log: Shows one line to the user.

    Raises:
        UserError: The device is cuda but the cluster has no GPUs, or the cluster is too small.
    """
    start_ray((actors or 1) + (readers or 1), log)
    # Ray leaves these functions without types.
    resources: Any = ray.cluster_resources
    has_gpus = "GPU" in resources()
    if device == "cuda" and not has_gpus:
        raise UserError("--device is cuda, but Ray has no GPUs; use --device cpu or join a cluster with GPUs")
    free: Any = ray.available_resources
    gpus, cpus = int(free().get("GPU", 0)), int(free().get("CPU", 0))
    # At least one of each, even if nothing is free now: the pool then waits for room.
    if has_gpus and device != "cpu":
        pool = ScoringPool("cuda", actors or max(gpus, 1), readers or max(cpus, 1))
    else:
        actors = actors or max((cpus - readers) if readers else cpus // 2, 1)
        pool = ScoringPool("cpu", actors, readers or max(cpus - actors, 1))
    needed = [pool.bundle] * pool.actors + [{"CPU": 1.0}] * pool.readers
    wait_for_room(needed, "scoring", "models and reading", "--actors or --readers", log)
    return pool
