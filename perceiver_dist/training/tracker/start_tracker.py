"""Start of the tracker, by the driver."""

import os
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perceiver_dist.checkpoint.lease import Fence
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.model.cost import parameter_count
from perceiver_dist.tracking.mlflow_environment import client_variables
from perceiver_dist.training.tracker.actor import Tracker
from perceiver_dist.training.tracker.handle import TrackerHandle


def start_tracker(config: RunConfig, folder: RunFolder, fence: Fence) -> TrackerHandle:
    """Start the tracker on the driver's node, so that it survives the loss of any other node.

    Args:
        config: The resolved configuration.
        folder: The run's folder.
        fence: The job's right to write to it.
    """
    facts = {"parameters": str(parameter_count(config.model, config.heads))}
    here = ray.get_runtime_context().get_node_id()
    # Heartbeats and questions about them have a thread of their own.
    remote: Any = ray.remote
    actor = remote(concurrency_groups={"liveness": 1})(Tracker)
    tracker: TrackerHandle = actor.options(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote(config, folder, facts, fence)
    return tracker


def open_mlflow_run(tracker: TrackerHandle) -> str:
    """Have the tracker open the MLflow run, with this process's variables for MLflow; return the run's id.

    Args:
        tracker: The `Tracker` actor.

    Raises:
        UserError: MLflow cannot open it.
    """
    try:
        return ray.get(tracker.open.remote(client_variables(os.environ)))
    except UserError as error:
        raise UserError(str(getattr(error, "cause", error))) from None
