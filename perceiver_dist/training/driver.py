"""A whole training run, from configuration to result.json, as the process that starts it sees it."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

# Ray reads this when it is imported: how often the controller looks whether workers are done or lost. 2 seconds by
# default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# After a node is lost Ray Train may ask for workers on it before it knows, and waits so long, 60 seconds by default,
# until it asks anew; and how often it looks for nodes that are about to go.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")

import ray
import ray.train
from ray.data import ExecutionOptions
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import (
    CONFIG,
    ERRORS,
    RESULT,
    check_continues,
    check_start,
    checkpoint_name,
    finished_result,
    newest_step,
    outbox_file,
    run_folder,
)
from perceiver_dist.cluster.capacity import cpus_of, device_type, gpus_per_worker, wait_for_capacity
from perceiver_dist.cluster.connect import check_is_kept, start_ray
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, WorkerRange
from perceiver_dist.data.shard_indexing import SourceData, index_sources, list_shards
from perceiver_dist.display.progress import ProgressLine
from perceiver_dist.errors import UserError
from perceiver_dist.model.cost import parameter_count
from perceiver_dist.strict_json import to_json
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_store import RunStatus, absolute_tracking_uri
from perceiver_dist.training.console import show_result, show_status, show_waiting
from perceiver_dist.training.datasets import TrainingGivenUpError, make_datasets
from perceiver_dist.training.fine_tuning import check_fine_tuning
from perceiver_dist.training.launch import ReleasePlacementGroup, fit_with_restarts
from perceiver_dist.training.preemption import forward_sigterm
from perceiver_dist.training.tracker.actor import Tracker
from perceiver_dist.training.tracker.failures import RankState, cause_of, failure_of
from perceiver_dist.training.tracker.status import TrainingStatus
from perceiver_dist.training.worker import WorkerJob, train_worker
from pipelines.demo.resolve import resolve_demo
from pipelines.storage.files import absolute_uri, check_writable, join, write_text


def run_training(
    config: RunConfig, console: Console, on_status: Callable[[TrainingStatus], None] | None = None
) -> dict[str, Any]:
    """Train, and leave config.yaml, result.json, checkpoints and figures in the run's folder.

    Args:
        config: The configuration; a run name that exists goes on from its last checkpoint.
        console: Where progress and the result table are shown.
        on_status: Called twice a second, in another thread, with how training goes.

    Returns:
        What result.json holds.

    Raises:
        UserError: Something the user can mend; nothing is left half-written.
    """
    config = resolve(config)
    folder = run_folder(config)
    check_writable(config.storage.path, "storage.path")
    with ProgressLine(console) as line:
        line.message(f"run {config.storage.run_name}: preparing data")
        config = replace(
            config, sources=[resolve_demo(source, config.storage.path) for source in config.sources]
        )
        check_continues(config, folder)
        check_start(config, folder)
        check_fine_tuning(config)
        finished = finished_result(config, folder)
        if finished:
            waiting = BackgroundWriter(config.tracking.uri or "", outbox_file(folder)).close()
            show_waiting(waiting, config, console)
            show_result(finished, config, folder, console)
            return finished
        shards = list_shards(config)
        start_ray(cpus_of(config))
        wait_for_capacity(config, line.message)
        data = index_sources(config, shards)
        write_text(join(folder, CONFIG), to_yaml(config))
        facts = {"parameters": str(parameter_count(config.model, config.heads))}
        tracker: Any = ray.remote(Tracker).options(**_beside_the_driver()).remote(config, folder, facts)
        run_id = ray.get(tracker.run_id.remote())
        line.message(f"starting {_workers(config)} workers: {_describe(config, data)}")
        outcome = _fit(config, data, tracker, show_status(line, tracker, config.last_step, on_status))
    status: TrainingStatus = ray.get(tracker.status.remote())
    result = _result(config, outcome, status, run_id, folder)
    waiting = ray.get(tracker.close.remote(_MLFLOW_STATUS[outcome.exit], result))
    show_waiting(waiting, config, console)
    if status.user_error:
        raise UserError(status.user_error)
    write_text(join(folder, RESULT), to_json(result, indent=1) + "\n")
    show_result(result, config, folder, console)
    return result


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with the run's name, the absolute storage path and the tracking URI filled in.

    Args:
        config: As the user gave it.

    Raises:
        UserError: Storage is remote and no tracking URI is given, or storage would be deleted after the job.
    """
    path = absolute_uri(config.storage.path)
    check_is_kept(path, "storage.path")
    if "://" in path and config.tracking.uri is None:
        raise UserError(
            f"tracking.uri is null and storage.path is {path}: MLflow's default is a local SQLite file; "
            "set tracking.uri to a server (http://...) or a local file (sqlite:///...)"
        )
    name = config.storage.run_name or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
    tracking = config.tracking.uri or f"sqlite:///{path}/mlflow.db"
    return replace(
        config,
        storage=replace(config.storage, path=path, run_name=name),
        tracking=replace(config.tracking, uri=absolute_tracking_uri(tracking)),
    )


def _beside_the_driver() -> dict[str, Any]:
    """Options of an actor that must live as long as the driver, whichever other node is lost."""
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


_SECONDS_BETWEEN_RESIZES = 30.0
"""Growing costs the steps since the last checkpoint and a start of the workers, so it is not looked at all the time."""

_MLFLOW_STATUS: dict[str, RunStatus] = {
    "completed": "FINISHED",
    "preempted": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


@dataclass(frozen=True)
class _Outcome:
    exit: str
    error: str


def _fit(
    config: RunConfig,
    data: dict[str, SourceData],
    tracker: Any,
    watching: AbstractContextManager[None],
) -> _Outcome:
    with watching, forward_sigterm(tracker):
        try:
            fit_with_restarts(partial(_trainer, config, data, tracker))
        except ray.train.TrainingFailedError as error:
            return _Outcome("failed", _reason(error, tracker))
        except (KeyboardInterrupt, SystemExit):
            # Ray Train answers Ctrl-C by ending its controller and then the driver, in which a record must be closed.
            return _Outcome("interrupted", "")
    status: TrainingStatus = ray.get(tracker.status.remote())
    if status.save_error:
        return _Outcome("failed", status.save_error)
    return _Outcome("completed" if newest_step(run_folder(config)) == config.last_step else "preempted", "")


def _reason(error: ray.train.TrainingFailedError, tracker: Any) -> str:
    """Return why training ended, one line; of an error in Ray Train's controller the traceback is kept as well."""
    cause = cause_of(getattr(error, "controller_failure", error))
    if isinstance(cause, TrainingGivenUpError | UserError | ray.train.TrainingFailedError):
        return str(cause).strip().splitlines()[-1]
    failure = failure_of(cause, RankState(0, activity="starting workers"))
    ray.get(tracker.keep_traceback.remote("controller", failure.traceback))
    return f"{failure.error} ({failure.place}), in Ray Train's controller; see {ERRORS}/controller.txt"


def _trainer(config: RunConfig, data: dict[str, SourceData], tracker: Any) -> TorchTrainer:
    train = config.train
    gpus = gpus_per_worker(config)
    return TorchTrainer(
        partial(train_worker, WorkerJob(config, tracker)),
        scaling_config=ScalingConfig(
            num_workers=(
                (train.min_workers, train.max_workers)
                if isinstance(train.num_workers, WorkerRange)
                else train.num_workers
            ),
            elastic_resize_monitor_interval_s=_SECONDS_BETWEEN_RESIZES,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if device_type(config) == "cuda" else "gloo"),
        run_config=ray.train.RunConfig(
            name=config.storage.run_name,
            storage_path=config.storage.path,
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[ReleasePlacementGroup()],  # type: ignore[list-item] # the types are those of Ray Train V1
        ),
        datasets={**make_datasets(config, data, tracker)},
        dataset_config=ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )


def _result(
    config: RunConfig, outcome: _Outcome, status: TrainingStatus, run_id: str, folder: str
) -> dict[str, Any]:
    saved = newest_step(folder)
    steps = max(status.step, saved)  # a step is logged now and then only
    return {
        "exit": outcome.exit,
        "error": outcome.error,
        "steps": steps,
        "samples_seen": steps * config.train.lanes * config.train.micro_batch,
        "world_size": status.world_size,
        "zero_stage": config.deepspeed.zero_stage,
        "metrics": status.scores,
        "samples_per_second": status.mean_samples_per_second,
        "data_wait_fraction": status.mean_data_wait_fraction,
        "restarts": status.restarts,
        "quarantined": status.quarantined,
        "mlflow_run_id": run_id,
        "checkpoint": join(folder, checkpoint_name(saved)) if saved else None,
    }


def _workers(config: RunConfig) -> str:
    least, most = config.train.min_workers, config.train.max_workers
    return f"{least}" if least == most else f"{least} to {most}"


def _describe(config: RunConfig, data: dict[str, SourceData]) -> str:
    sources = ", ".join(f"{name} {of.train.samples:,} samples" for name, of in data.items())
    return f"{sources}; ZeRO {config.deepspeed.zero_stage}, {config.train.steps} steps"
