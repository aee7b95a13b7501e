"""The pool that scores a stream of units: actors that hold the model, and read tasks that feed them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray

from perceiver_dist.cluster.capacity import Bundle, wait_for_room
from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.errors import UserError
from perceiver_dist.inference.inference_options import Device


@dataclass(frozen=True)
class ScoringPool:
    """How the work is divided.

    Attributes:
        device: What the model runs on, cpu or cuda.
        actors: Copies of the model, each with a CPU, or with a GPU.
        readers: Read tasks at a time, each on one CPU.
    """

    device: Literal["cpu", "cuda"]
    actors: int
    readers: int

    @property
    def bundle(self) -> Bundle:
        """What one actor needs."""
        return {"GPU": 1.0} if self.device == "cuda" else {"CPU": 1.0}


def allocate_pool(
    device: Device, actors: int | None, readers: int | None, say: Callable[[str], None]
) -> ScoringPool:
    """Start Ray or join the cluster, divide the work, and wait until there is room for it.

    Args:
        device: What the model runs on; auto takes GPUs if the cluster has any.
        actors: Copies of the model; None for one on each GPU that is free, or on half of the CPUs.
        readers: Read tasks at a time; None for one on each CPU that is then left.
        say: Shows one line.

    Raises:
        UserError: There is no GPU though asked for, or no room.
    """
    start_ray((actors or 1) + (readers or 1))
    resources: Any = ray.cluster_resources
    has_gpus = "GPU" in resources()
    if device == "cuda" and not has_gpus:
        raise UserError("--device is cuda, but Ray has no GPUs; use --device cpu or join a cluster with GPUs")
    free: Any = ray.available_resources
    gpus, cpus = int(free().get("GPU", 0)), int(free().get("CPU", 0))
    if has_gpus and device != "cpu":
        pool = ScoringPool("cuda", actors or max(gpus, 1), readers or max(cpus, 1))
    else:
        actors = actors or max((cpus - readers) if readers else cpus // 2, 1)
        pool = ScoringPool("cpu", actors, readers or max(cpus - actors, 1))
    needed = [pool.bundle] * pool.actors + [{"CPU": 1.0}] * pool.readers
    wait_for_room(needed, "models and reading", "--actors or --readers", say)
    return pool
