"""Console output of the driver: the status while training runs, and the result."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.display.progress import ProgressLine, result_table
from perceiver_dist.training.tracker.handle import TrackerHandle
from perceiver_dist.training.tracker.status import TrainingStatus

_SECONDS_BETWEEN_UPDATES = 0.5
"""Often enough for a person to see progress; each update is one call to the tracker."""

_MAX_SECONDS_OF_UPDATE = 5.0
"""How long an update waits for the tracker, which may draw figures at the time. A tracker that is gone with its Ray may
not keep the driver."""

_SECONDS_BEFORE_WAITING_LINE = 5.0
"""An activity of a usual start takes less than this; longer, a person wonders whether the run hangs."""


@dataclass
class ShownStatus:
    """The newest status that the tracker has told, which is what is known of a run whose Ray has ended.

    Attributes:
        newest: The status.
    """

    newest: TrainingStatus = field(default_factory=TrainingStatus)


@contextmanager
def show_status(
    line: ProgressLine,
    tracker: TrackerHandle,
    total_steps: int,
    on_status: Callable[[TrainingStatus], None] | None,
) -> Iterator[ShownStatus]:
    """Show the tracker's status on the progress line while `trainer.fit` holds the main thread.

    Args:
        line: The progress line.
        tracker: The `Tracker` actor, polled twice a second.
        total_steps: Steps of the whole run.
        on_status: Called with each status, too.

    Yields:
        The newest status, kept current.
    """
    done, known = threading.Event(), ShownStatus()
    start = StartWatch()
    restarts = shown = workers = 0

    def update() -> None:
        nonlocal restarts, shown, workers
        try:
            status = ray.get(tracker.status.remote(), timeout=_MAX_SECONDS_OF_UPDATE)
        except RayError:
            return  # what comes of it is for the main thread to say
        known.newest = status
        if status.restarts > restarts:
            restarts = status.restarts
            line.message(_restart_line(status, workers))
        workers = status.world_size
        for message in status.messages[shown:]:
            line.message(message)
        shown = len(status.messages)
        latest = status.latest
        waiting = start.waiting_for(status.starting, time.monotonic())
        if waiting:
            line.waiting(waiting)
        elif latest.step:
            line.update(
                latest.step, total_steps, latest.loss, latest.samples_per_second, latest.data_wait_fraction
            )
        if on_status:
            on_status(status)

    def watch() -> None:
        while not done.wait(_SECONDS_BETWEEN_UPDATES):
            update()
        # Once more at the end, for the messages of the last interval.
        update()

    # A thread, because `trainer.fit` blocks the main one.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield known
    finally:
        done.set()
        watcher.join()


class StartWatch:
    """Watch on the start of a group of workers, which says what it waits for when that takes long."""

    def __init__(self) -> None:
        """Start without anything to wait for."""
        self._current = ""
        self._since = 0.0

    def waiting_for(self, starting: Mapping[int, str] | None, now: float) -> str:
        """Return what the run waits for and how long it has, one line; "" if that is not worth a line.

        Args:
            starting: `TrainingStatus.starting`.
            now: Monotonic time in seconds.
        """
        current = "" if starting is None else _activities(starting)
        if current != self._current:
            self._current, self._since = current, now
        seconds = now - self._since
        shown = current and seconds >= _SECONDS_BEFORE_WAITING_LINE
        return f"waiting for {current} ({seconds:.0f} s)" if shown else ""


def _activities(starting: Mapping[int, str]) -> str:
    """Return what ranks do, such as "rank 0: building the model, rank 1: loading libraries"."""
    ranks: dict[str, list[int]] = {}
    for rank, activity in sorted(starting.items()):
        ranks.setdefault(activity, []).append(rank)
    parts = [
        f"rank{'s' if len(them) > 1 else ''} {', '.join(map(str, them))}: {activity}"
        for activity, them in ranks.items()
    ]
    return "; ".join(parts) or "the processes of the workers"


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
