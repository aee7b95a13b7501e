"""Driver of a training run, from the configuration to result.json."""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

# Ray reads these variables when it is imported. The first is how often the controller checks whether workers have
# finished or died, 2 seconds by default. More often, the end of training and the loss of a worker are noticed at once.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# After the loss of a node Ray Train may request workers on it before it knows of the loss. It retries after this
# timeout, 60 seconds by default.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
# How often it checks for nodes that are being drained. Some clouds give spot machines no more than 30 seconds.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")

import ray
import ray.train
from ray.exceptions import RayTaskError
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import ScalingConfig
from rich.console import Console

from perceiver_dist.checkpoint.lease import Fence, Lease
from perceiver_dist.checkpoint.run_folder import ERRORS, RunFolder
from perceiver_dist.cluster.capacity import (
    cpus_of,
    device_type,
    fewest_workers,
    gpus_per_worker,
    wait_for_capacity,
)
from perceiver_dist.cluster.connect import ray_is_own, start_ray
from perceiver_dist.cluster.room_watch import RoomWatch
from perceiver_dist.cluster.termination import (
    EndedEarlyError,
    TerminationWatch,
    node_is_lost,
)
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, TrainConfig, WorkerRange
from perceiver_dist.data.field_check import check_fields, shown_fields
from perceiver_dist.data.shard_indexing import SourceData, index_sources
from perceiver_dist.display.progress import ProgressLine
from perceiver_dist.errors import UserError
from perceiver_dist.strict_json import to_json
from perceiver_dist.tracking.mlflow_environment import MlflowPlace
from perceiver_dist.tracking.mlflow_store import RunStatus
from perceiver_dist.training.console import ShownStatus, show_result, show_status, show_waiting
from perceiver_dist.training.controller_callbacks import ControllerHeartbeat, LeaveOutSlowNodes
from perceiver_dist.training.datasets import (
    ReadingOptions,
    TrainingGivenUpError,
    make_datasets,
    training_makers,
)
from perceiver_dist.training.hang_watch import HangError, HangWatch, end_this_process
from perceiver_dist.training.launch import ReleasePlacementGroup, Trainer, fit_with_restarts, name_for_others
from perceiver_dist.training.liveness.hang import HangBounds
from perceiver_dist.training.liveness.rank_state import RankState
from perceiver_dist.training.prepare import PreparedRun, place_of, prepare, resolve
from perceiver_dist.training.result import run_result
from perceiver_dist.training.tracker.failures import cause_of, failure_of
from perceiver_dist.training.tracker.handle import TrackerHandle
from perceiver_dist.training.tracker.start_tracker import open_mlflow_run, start_tracker
from perceiver_dist.training.tracker.status import TrainingStatus
from perceiver_dist.training.worker import WorkerJob, train_worker
from pipelines.storage.files import STORAGE_ERRORS, reason_of, write_text
from pipelines.storage.write_check import check_writable
from pipelines.units.unit_maker import UnitMaker


def run_training(
    config: RunConfig,
    console: Console,
    on_status: Callable[[TrainingStatus], None] | None = None,
    search: Fence | None = None,
    hangs: int = 0,
) -> dict[str, Any]:
    """Train, and write config.yaml, result.json, checkpoints and figures to the run's folder.

    Args:
        config: The configuration. A run whose name exists is resumed from its newest checkpoint.
        console: Where progress and the result table are shown.
        on_status: Called twice a second, in another thread, with the status of the training.
        search: Right to write of the search that has started it, which holds a lease for all of its trials.
        hangs: How often the job has begun anew before, in another Ray.

    Returns:
        The content of result.json.

    Raises:
        UserError: A mistake in the configuration or the data, found before or during training; no file is left
            incomplete. Or another job trains the run.
        HangError: The run hangs in this Ray, and may begin anew in another one, in a new process.
    """
    config, place = resolve(config), place_of(config)
    # Before the lease and demo data are written there.
    check_writable(config.storage.path, "storage.path")
    job = _Job(config, place, console, on_status, hangs)
    if search is not None:
        return _train(job, None, search)
    # A new lease each time: what is left of a Ray that was given up is fenced off by it.
    with _lease(config, console) as lease:
        return _train(job, lease, lease.fence)


@dataclass(frozen=True)
class _Job:
    """What `run_training` was called with.

    Attributes:
        config: The resolved configuration.
        place: Where MLflow is.
        console: Where progress and the result are shown.
        on_status: Called twice a second with the status of the training.
        hangs: How often it has given up a Ray in which it hung.
    """

    config: RunConfig
    place: MlflowPlace
    console: Console
    on_status: Callable[[TrainingStatus], None] | None
    hangs: int


def _lease(config: RunConfig, console: Console) -> Lease:
    report = partial(console.print, markup=False, soft_wrap=True)
    what = f"run '{config.storage.run_name}'"
    return Lease(RunFolder.of(config).uri, what, "storage.run_name", report)


def _train(job: _Job, lease: Lease | None, fence: Fence) -> dict[str, Any]:
    config, console = job.config, job.console
    with ProgressLine(console) as line:
        run = prepare(config, job.place, line.message)
        if run.finished is not None:
            return _report_finished(run, run.finished, console)
        start_ray(cpus_of(run.config), line.message)
        who = name_for_others(run.folder.uri, is_trial=lease is None)
        wait_for_capacity(run.config, who, line.message)
        data = index_sources(run.config, run.shards)
        for warning in check_fields(run.config, data):
            line.message(f"warning: {warning}")
        makers = training_makers(run.config, data)
        if lease is not None:
            lease.confirm()
        write_text(run.folder.config, to_yaml(run.config))
        tracker = start_tracker(run.config, run.folder, fence)
        run_id = open_mlflow_run(tracker)
        starting = f"starting {_workers(run.config)} workers: {_describe(run.config, data)}"
        # A trial's error reaches nobody: its process ends instead, and the search restarts it.
        on_error = end_this_process if lease is None else None
        watch = HangWatch(
            tracker, run.folder, fence, HangBounds.of(run.config), ray_is_own(), line.message, on_error
        )
        shown = show_status(line, tracker, watch, run.config.last_step, job.on_status)
        trainer = partial(_trainer, run.config, who, data, makers, tracker)
        # A search watches the room of all its trials.
        elastic = isinstance(run.config.train.num_workers, WorkerRange)
        fewest = (f"{who} (workers)", fewest_workers(run.config)) if elastic else None
        with nullcontext() if lease is None else RoomWatch(line.message, fewest):
            outcome = _fit(run, job, lease, trainer, tracker, shown, partial(line.message, starting))
    if lease is not None:
        lease.confirm()
    return _finish(run, outcome, tracker, run_id, console)


def _report_finished(run: PreparedRun, result: dict[str, Any], console: Console) -> dict[str, Any]:
    """Show the result of a finished run, and send queued records to MLflow."""
    # Imports MLflow, which only a finished run needs in this process.
    from perceiver_dist.tracking.background_writer import BackgroundWriter

    waiting = BackgroundWriter(run.config.tracking.uri or "", run.folder.outbox).close()
    show_waiting(waiting, run.config, console)
    show_result(result, run.config, run.folder, console)
    return result


_SECONDS_BETWEEN_RESIZES = 30.0
"""How often elastic training looks for room for more workers. Each resize costs the steps since the last checkpoint and
a restart of the workers, so it must not react to every change."""

_MLFLOW_STATUS: dict[str, RunStatus] = {
    "completed": "FINISHED",
    "preempted": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


@dataclass(frozen=True)
class _Outcome:
    """How training ended.

    Attributes:
        exit: As in result.json.
        error: One line on an error.
        known: The last status of a run whose Ray has ended, so that nobody can be asked any more; else None.
    """

    exit: str
    error: str = ""
    known: TrainingStatus | None = None


def _fit(
    run: PreparedRun,
    job: _Job,
    lease: Lease | None,
    trainer: Callable[[], Trainer],
    tracker: TrackerHandle,
    watching: AbstractContextManager[ShownStatus],
    announce: Callable[[], None],
) -> _Outcome:
    with (
        watching as shown,
        TerminationWatch(tracker.preempt.remote, partial(_reason_to_end, run, lease, shown)) as termination,
    ):
        # Only now: whoever reads the line may send SIGTERM, which is handled from here on.
        announce()
        try:
            fit_with_restarts(trainer)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if isinstance(termination.reason, EndedEarlyError):
                return _Outcome("preempted")
            if isinstance(termination.reason, UserError):
                raise termination.reason from None
            if isinstance(termination.reason, HangError):
                return _hung(termination.reason, job.hangs, run.config, shown.newest)
            if termination.reason is None and isinstance(error, KeyboardInterrupt | SystemExit):
                # On Ctrl-C Ray Train ends its controller and raises SystemExit. The record still has to be closed.
                return _Outcome("interrupted")
            # Whatever Ray raises when it ends under the driver.
            if termination.reason is not None or termination.ray_has_ended():
                return _ended_with_ray(termination.requested, shown.newest)
            if node_is_lost():
                lost = HangError("Ray's server has lost this machine, whose raylet did not answer it")
                return _hung(lost, job.hangs, run.config, shown.newest)
            if isinstance(error, ray.train.TrainingFailedError):
                return _Outcome("failed", _reason(error, tracker))
            raise
    status = ray.get(tracker.status.remote())
    if status.save_error:
        return _Outcome("failed", status.save_error)
    complete = bool(status.stopped_early) or run.folder.newest_step() == run.config.last_step
    return _Outcome("completed" if complete else "preempted")


def _hung(error: HangError, before: int, config: RunConfig, known: TrainingStatus) -> _Outcome:
    """Return how a run ended that hung in too many Rays, one after the other.

    Raises:
        HangError: It may start again.
    """
    if before < config.train.max_failures:
        raise error
    return _Outcome("failed", f"{error}; the run hung in {before + 1} Rays", known)


def _reason_to_end(
    run: PreparedRun, lease: Lease | None, shown: ShownStatus, requested: bool
) -> Exception | None:
    """Return why the driver must or may end without waiting for the ranks; None if it has to wait."""
    if lease is not None and lease.loss is not None:
        return lease.loss
    if shown.watch.error is not None:
        return shown.watch.error
    return EndedEarlyError() if requested and _nothing_to_save(run, shown) else None


def _nothing_to_save(run: PreparedRun, shown: ShownStatus) -> bool:
    """Return whether no step has been taken since the newest checkpoint, as far as is known."""
    if shown.watch.life.is_starting:
        return True
    # The final evaluation, which is repeated when the run resumes.
    return shown.newest.latest.step == run.config.last_step == run.folder.newest_step()


def _ended_with_ray(requested: bool, known: TrainingStatus) -> _Outcome:
    if requested:
        return _Outcome("preempted", "Ray was ended before the ranks could save", known)
    error = (
        "Ray has ended on this machine, without being asked to; its logs are in /tmp/ray/session_latest/logs"
    )
    return _Outcome("failed", error, known)


def _reason(error: ray.train.TrainingFailedError, tracker: TrackerHandle) -> str:
    """Return why training failed, one line. The traceback of an error in Ray Train's controller is saved as well."""
    cause = cause_of(getattr(error, "controller_failure", error))
    if isinstance(cause, TrainingGivenUpError | UserError | ray.train.TrainingFailedError):
        return str(cause).strip().splitlines()[-1]
    failure = failure_of(cause, RankState(0, activity="starting workers"))
    ray.get(tracker.keep_traceback.remote("controller", failure.traceback))
    return f"{failure.error} ({failure.place}), in Ray Train's controller; see {ERRORS}/controller.txt"


def _trainer(
    config: RunConfig,
    who: str,
    data: dict[str, SourceData],
    makers: dict[str, UnitMaker],
    tracker: TrackerHandle,
) -> Trainer:
    train = config.train
    gpus = gpus_per_worker(config)
    return Trainer(
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
        torch_config=TorchConfig(
            backend="nccl" if device_type(config) == "cuda" else "gloo",
            timeout_s=math.ceil(HangBounds.of(config).collective_timeout),
        ),
        run_config=ray.train.RunConfig(
            name=config.storage.run_name,
            storage_path=config.storage.path,
            # Ray Train retries without limit; making the datasets fails when train.max_failures is exceeded.
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=_callbacks(train, who, tracker),
        ),
        datasets={**make_datasets(config, data, makers, tracker)},
        dataset_config=ReadingOptions(config),
    )


def _callbacks(train: TrainConfig, who: str, tracker: TrackerHandle) -> list[Any]:
    """Return Ray Train's callbacks. Its annotations name the class of its version 1."""
    slow = [LeaveOutSlowNodes(tracker)] if train.leave_out_slow_nodes else []
    return [ReleasePlacementGroup(who), ControllerHeartbeat(tracker), *slow]


def _finish(
    run: PreparedRun, outcome: _Outcome, tracker: TrackerHandle, run_id: str, console: Console
) -> dict[str, Any]:
    """Close the record, write result.json and show the result.

    Raises:
        UserError: A rank or a dataset raised it, or the run's folder cannot be written. There is no result.json then.
        RayTaskError: The tracker failed otherwise.
    """
    status = outcome.known or ray.get(tracker.status.remote())
    result = run_result(
        run, outcome.exit, outcome.error, status, run_id, ended_with_ray=outcome.known is not None
    )
    try:
        if outcome.known is None:
            waiting = ray.get(tracker.close.remote(_MLFLOW_STATUS[outcome.exit], result))
            show_waiting(waiting, run.config, console)
        if status.user_error:
            raise UserError(status.user_error)
        write_text(run.folder.result, to_json(result, indent=1) + "\n")
    except (RayTaskError, *STORAGE_ERRORS) as error:
        cause = cause_of(error)
        if not isinstance(cause, STORAGE_ERRORS):
            raise
        raise UserError(
            f"run '{run.config.storage.run_name}' ended as {outcome.exit} after step {result['steps']}, but its record "
            f"cannot be written to {run.folder.uri} ({reason_of(cause)}); start it again when that can be written"
        ) from error
    show_result(result, run.config, run.folder, console)
    return result


def _workers(config: RunConfig) -> str:
    fewest, most = config.train.min_workers, config.train.max_workers
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"


def _describe(config: RunConfig, data: dict[str, SourceData]) -> str:
    sources = ", ".join(
        f"{name} {of.train.samples:,} samples ({shown_fields(of.train)})" for name, of in data.items()
    )
    return f"{sources}; ZeRO {config.deepspeed.zero_stage}, {config.train.steps} steps"
