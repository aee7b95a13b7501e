"""Console output of the driver: the status while training runs, and the result."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.display.progress import ProgressLine, duration, result_table
from perceiver_dist.training.hang_watch import HangWatch
from perceiver_dist.training.liveness.hang import describe
from perceiver_dist.training.liveness.life import RunLife
from perceiver_dist.training.tracker.handle import TrackerHandle
from perceiver_dist.training.tracker.status import TrainingStatus

_SECONDS_BETWEEN_UPDATES = 0.5
"""Often enough for a person to see progress; each update is one call to the tracker."""

_MAX_SECONDS_OF_UPDATE = 5.0
"""How long an update waits for the tracker, which may draw figures at the time. A tracker that is gone with its Ray may
not keep the driver."""

_SECONDS_BEFORE_WAITING_LINE = 5.0
"""An activity of a usual start takes less than this; longer, a person wonders whether the run hangs."""

_SLOWER_THAN_USUAL = 2
"""Once a phase has taken so many times the longest it has taken so far, the speed on the screen is not of now."""


@dataclass
class ShownStatus:
    """The newest status that the tracker has told, which is what is known of a run whose Ray has ended.

    Attributes:
        watch: Watch on the run.
        newest: The status.
    """

    watch: HangWatch
    newest: TrainingStatus = field(default_factory=TrainingStatus)


@contextmanager
def show_status(
    line: ProgressLine,
    tracker: TrackerHandle,
    watch: HangWatch,
    total_steps: int,
    on_status: Callable[[TrainingStatus], None] | None,
) -> Iterator[ShownStatus]:
    """Show the tracker's status on the progress line while `trainer.fit` holds the main thread.

    Args:
        line: The progress line.
        tracker: The `Tracker` actor, polled twice a second.
        watch: Watch on the run, which is asked to look as often.
        total_steps: Steps of the whole run.
        on_status: Called with each status, too.

    Yields:
        The newest status, kept current.
    """
    done, shown = threading.Event(), ShownStatus(watch)
    updates = _Updates(line, tracker, shown, total_steps, on_status)

    def run() -> None:
        while not done.wait(_SECONDS_BETWEEN_UPDATES):
            updates.update()
        # Once more at the end, for the messages of the last interval.
        updates.update()

    # A thread, because `trainer.fit` blocks the main one.
    watcher = threading.Thread(target=run, daemon=True)
    watcher.start()
    try:
        yield shown
    finally:
        done.set()
        watcher.join()


class _Updates:
    """What the updates of a progress line remember."""

    def __init__(
        self,
        line: ProgressLine,
        tracker: TrackerHandle,
        shown: ShownStatus,
        total_steps: int,
        on_status: Callable[[TrainingStatus], None] | None,
    ) -> None:
        self._line, self._tracker, self._shown = line, tracker, shown
        self._total_steps, self._on_status = total_steps, on_status
        self._restarts = self._messages = self._workers = 0

    def update(self) -> None:
        watch = self._shown.watch
        watch.look()
        waiting = waiting_for(watch.life, watch.silent_seconds)
        if waiting:
            self._line.waiting(waiting)
        try:
            status = ray.get(self._tracker.status.remote(), timeout=_MAX_SECONDS_OF_UPDATE)
        except RayError:
            return  # what comes of it is for the main thread to say
        self._shown.newest = status
        self._show_news(status)
        latest = status.latest
        if latest.step and not waiting:
            self._line.update(
                latest.step,
                self._total_steps,
                latest.loss,
                latest.samples_per_second,
                latest.data_wait_fraction,
            )
        if self._on_status:
            self._on_status(status)

    def _show_news(self, status: TrainingStatus) -> None:
        if status.restarts > self._restarts:
            self._restarts = status.restarts
            self._line.message(_restart_line(status, self._workers))
        self._workers = status.world_size
        for message in status.messages[self._messages :]:
            self._line.message(message)
        self._messages = len(status.messages)


def waiting_for(life: RunLife, tracker_silent_seconds: float) -> str:
    """Return what a run waits for, and for how long it has, one line; "" if that is not worth a line.

    Args:
        life: What is known of the processes of the run.
        tracker_silent_seconds: Time since the tracker has last answered.
    """
    if tracker_silent_seconds >= _SECONDS_BEFORE_WAITING_LINE:
        return f"the tracker has not answered for {duration(tracker_silent_seconds)}"
    idle = life.idle_seconds
    if not life.group or idle < _SECONDS_BEFORE_WAITING_LINE:
        return ""
    if life.is_starting:
        return f"waiting for {describe(life)} ({idle:.0f} s)"
    usual = max(life.slowest.get(rank.state.phase, 0.0) for rank in life.ranks)
    if idle < _SLOWER_THAN_USUAL * usual:
        return ""
    step = max(rank.state.step for rank in life.ranks)
    return f"step {step}: no progress for {duration(idle)} ({describe(life)})"


def _restart_line(status: TrainingStatus, workers_before: int) -> str:
    """Describe why there is a new group of workers, as far as their number shows it."""
    if status.restarted_after_error:
        return f"{status.world_size} workers resume from step {status.started_from} after the error"
    if status.world_size > workers_before:
        return f"more workers joined: {status.world_size} resume from step {status.started_from}"
    return f"workers were lost: {status.world_size} resume from step {status.started_from}"


def show_waiting(waiting: int, config: RunConfig, console: Console) -> None:
    """Print how many records are still queued for MLflow, if there are any.

    Args:
        waiting: Number of queued records.
        config: The resolved configuration.
        console: Where to print.
    """
    if waiting:
        console.print(
            f"MLflow at {config.tracking.uri} is unavailable: {waiting} records are queued on disk; "
            f"--storage.run_name {config.storage.run_name} sends them once it is available, without training again",
            markup=False,
            soft_wrap=True,
        )


def _because(result: Mapping[str, Any]) -> str:
    return f" ({result['error']})" if result["error"] else ""


def show_result(result: dict[str, Any], config: RunConfig, folder: RunFolder, console: Console) -> None:
    """Print the table of metrics of an ended run, and where its files are.

    Args:
        result: Content of result.json.
        config: The resolved configuration.
        folder: The run's folder.
        console: Where to print.
    """
    # markup=False below: paths and messages may contain brackets, which rich would interpret.
    places = {
        "run": folder.uri,
        "checkpoint": result["checkpoint"] or "none",
        "MLflow run": result["mlflow_run_id"],
    }
    if best := result.get("best"):  # not in the results of older versions
        shown = best["checkpoint"] or f"step {best['step']}, not there any more"
        places["best checkpoint"] = f"{shown} ({best['metric']} {best['value']:.4g})"
    if result["quarantined"]:
        places["quarantined"] = f"{result['quarantined']} samples, see {folder.quarantine}"
    if config.tracking.uri and config.tracking.uri.startswith("sqlite"):
        places["UI"] = f"mlflow ui --backend-store-uri {config.tracking.uri}"
    if result["exit"] == "failed":
        console.print(
            f"training failed after step {result['steps']}: {result['error']}", markup=False, soft_wrap=True
        )
    if result["exit"] in ("interrupted", "preempted"):
        console.print(
            f"{result['exit']} at step {result['steps']}{_because(result)}: --storage.run_name "
            f"{config.storage.run_name} resumes from the newest checkpoint",
            markup=False,
            soft_wrap=True,
        )
    console.print(result_table(result["metrics"], places))
