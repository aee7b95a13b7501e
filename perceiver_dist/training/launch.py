"""Workarounds for two faults of Ray Train: a loss that it does not restart after, and workers that it loses itself.

Ray Train restarts a group of workers if one is lost while the group is created or while it trains. In between, every
worker receives the function to run, and imports modules for some seconds. In Ray Train 2.60 the loss of a worker in
this window counts as an error of the controller and ends the training: `WorkerGroup._start_impl` sends the function
outside its guard against lost actors. It does not release the placement group of these workers either, so the next
start would wait for it forever.

It also starts an actor per training, `PlacementGroupCleaner`, that removes the workers' placement group, and with it
the workers, once it finds the controller dead. It asks the dashboard at the address in Ray's server. A Ray without a
dashboard has an address there, too, port 8265, and a Ray that is started later on the machine takes that port. Its
dashboard does not know the controller, which the actor takes for death: a training lost its workers when another Ray
was started beside it (Ray 2.60). `Trainer` leaves the actor out; `perceiver_dist/cluster/room_watch.py` does its work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext
from ray.train.v2._internal.execution.worker_group import worker_group as worker_group_module
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group

from perceiver_dist.cluster.ray_tables import reservation_name


def name_for_others(folder: str, *, is_trial: bool) -> str:
    """Return the name of a run, such as "run 'demo'" or "trial 'shapes/trial-003'", for others that wait for its room.

    Args:
        folder: The run's folder.
        is_trial: Whether it is in the folder of a search.
    """
    *_, search, name = ["", *folder.rstrip("/").split("/")]
    return f"trial '{search}/{name}'" if is_trial else f"run '{name}'"


class ReleasePlacementGroup(WorkerGroupCallback, ControllerCallback):
    """Callback that releases the placement group of the workers before, where Ray Train has not done so.

    It also names the groups, so that others that wait for room are told who has it.
    """

    def __init__(self, who: str) -> None:
        """Start without a group of workers.

        Args:
            who: Name of the run.
        """
        self._who = who
        self._placement_group: PlacementGroup | None = None

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:  # noqa: ARG002
        """Release the placement group of the previous workers.

        Args:
            worker_group_context: The group about to start.
        """
        self._release()
        # Ray Train makes the group without a name, in this process.
        named = partial(placement_group, name=reservation_name(f"{self._who} (workers)"))
        setattr(worker_group_module, "placement_group", named)  # noqa: B010 # a name that it imports, for mypy

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Remember the placement group of the workers.

        Args:
            worker_group: The group, whose workers have not received the training function yet.
        """
        self._placement_group = worker_group.get_worker_group_state().placement_group_handle.placement_group

    async def before_controller_shutdown(self) -> None:
        """Release the placement group of the last workers."""
        self._release()

    def _release(self) -> None:
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)
            self._placement_group = None


class Trainer(TorchTrainer):
    """Ray Train's trainer without the actor that may remove the workers of a training that lives."""

    def _create_default_callbacks(self) -> list[Any]:
        # For mypy, `TorchTrainer` is that of Ray Train's version 1.
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def fit_with_restarts(make_trainer: Callable[[], TorchTrainer]) -> None:
    """Train, and restart if a worker is lost before it trains.

    The trainer's datasets limit the number of restarts: they are created at each start, and raise an error once
    `train.max_failures` is exceeded (`perceiver_dist/training/tracker/restarts.py`).

    Args:
        make_trainer: Makes a trainer that resumes from the newest checkpoint, with `ReleasePlacementGroup` among its
            callbacks.

    Raises:
        ControllerError: Ray Train's controller failed for another reason.
        WorkerGroupError: Workers failed more often than the trainer allows.
    """
    while True:
        try:
            make_trainer().fit()
        except ControllerError as error:
            if not isinstance(error.controller_failure, RayActorError):
                raise
        else:
            return
