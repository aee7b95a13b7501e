"""Training to the end through the one loss of a worker that Ray Train does not answer with a new start.

Ray Train starts a group of workers anew if one is lost while it is made or while it trains. Between the two every
worker is handed the function to run, and imports what it needs for some seconds. A worker lost then counts as a fault
of the controller in Ray Train 2.60 and ends the training (`WorkerGroup._start_impl` hands the function over outside
its guard against lost actors).
"""

from collections.abc import Callable

from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.train.torch import TorchTrainer


def train_to_the_end(make_trainer: Callable[[], TorchTrainer]) -> None:
    """Train, and train anew when a worker was lost before it began.

    How often that may happen is for the trainer's datasets to say, which are made anew at each start and raise an
    error when it is enough (`perceiver_dist.training.starts`).

    Args:
        make_trainer: Makes a trainer that goes on from the newest checkpoint.

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
