"""Training to the end through the one loss of a worker that Ray Train does not answer with a new start.

Ray Train starts a group of workers anew if one is lost while it is made or while it trains. Between the two every
worker is handed the function to run, and imports what it needs for some seconds. In Ray Train 2.60 a worker lost then
counts as a fault of the controller and ends the training: `WorkerGroup._start_impl` hands the function over outside its
guard against lost actors. Nor does it release the placement group of such workers, which the next start would wait for.
"""

from collections.abc import Callable

from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup


class ReleasePlacementGroup(WorkerGroupCallback, ControllerCallback):
    """Releases a placement group before the next group of workers starts, and at the end; Ray Train mostly has."""

    def __init__(self) -> None:
        """Begin without a group of workers."""
        self._placement_group: PlacementGroup | None = None

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:  # noqa: ARG002
        """Release the placement group of the workers before.

        Args:
            worker_group_context: The group that is to start.
        """
        self._release()

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Note the placement group of the workers.

        Args:
            worker_group: The group, whose workers have not been handed anything yet.
        """
        self._placement_group = worker_group.get_worker_group_state().placement_group_handle.placement_group

    async def before_controller_shutdown(self) -> None:
        """Release the placement group of the last workers."""
        self._release()

    def _release(self) -> None:
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)
            self._placement_group = None


def fit_with_restarts(make_trainer: Callable[[], TorchTrainer]) -> None:
    """Train, and train anew when a worker was lost before it began.

    How often that may happen is for the trainer's datasets to say, which are made anew at each start and raise an
    error when it is enough (`perceiver_dist.training.tracker.restarts`).

    Args:
        make_trainer: Makes a trainer that goes on from the newest checkpoint, with `ReleasePlacementGroup` among its
            callbacks.

    Raises:
        ControllerError: Ray Train's controller failed otherwise.
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
